"""The whole service on the demo model, over HTTP in process: what a card processor relies on."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from api.bad_requests import BAD_REQUESTS, NUMBER_COLUMN, BadRequest

from serve.api import create_app
from serve.replica.factory import assemble
from serve.settings import BatchingSettings, ServerSettings

NUMBER = "amount"
"""The number column that the table of bad requests spoils."""


USUAL = {
    "amount": 20.0,
    "amount_to_usual": 0.9,
    "amount_24h": 15.0,
    "hour": 14.0,
    "minutes_since_last": 2_000.0,
    "count_1h": 0.0,
    "count_24h": 1.0,
    "distance_km": 12.0,
    "terminal_fraud_rate_7d": 0.0,
    "merchant_category": "grocery",
    "country": "DE",
    "channel": "chip",
    "new_device": None,
}
SUSPICIOUS = {
    "amount": 900.0,
    "amount_to_usual": 6.0,
    "amount_24h": 1_500.0,
    "hour": 3.0,
    "minutes_since_last": 6.0,
    "count_1h": 3.0,
    "count_24h": 5.0,
    "distance_km": None,
    "merchant_category": "electronics",
    "country": "NG",
    "channel": "online",
    "new_device": "yes",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(assemble(ServerSettings(batching=BatchingSettings(max_request_rows=256))))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60) as client,
    ):
        yield client


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def example(client: httpx.AsyncClient) -> dict[str, Any]:
    record: dict[str, Any] = (await client.get("/v1/models/fraud")).json()["example"]
    return record


async def ask(client: httpx.AsyncClient, *records: Mapping[str, Any]) -> dict[str, Any]:
    answer = await client.post("/v1/models/fraud/predict", json={"records": list(records)})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def varied(example: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {**example, "amount": 5.0 + 37 * number, "count_1h": float(number % 6), "country": ["DE", "NG"][number % 2]}


async def test_a_transaction_gets_a_fraud_probability(client: httpx.AsyncClient, example: dict[str, Any]) -> None:
    answer = await ask(client, example)
    assert (answer["model"], answer["version"], answer["classes"]) == ("fraud", "1", ["0", "1"])
    (prediction,) = answer["predictions"]
    assert prediction["label"] == "0"
    assert sum(prediction["probabilities"]) == pytest.approx(1)
    assert 0 < prediction["probabilities"][1] < 0.5
    assert set(answer["timing_ms"]) == {"queue", "compute", "total"}


async def test_a_suspicious_one_scores_higher(client: httpx.AsyncClient, example: dict[str, Any]) -> None:
    usual = {**example, **USUAL}
    suspicious = {**usual, **SUSPICIOUS}
    answer = await ask(client, usual, suspicious)
    low, high = (prediction["probabilities"][1] for prediction in answer["predictions"])
    assert high > 10 * low


async def test_64_callers_share_batches_and_each_gets_its_own_answer(
    client: httpx.AsyncClient, example: dict[str, Any]
) -> None:
    records = [varied(example, number) for number in range(64)]
    alone = [await ask(client, record) for record in records[:8]]
    before = await batch_totals(client)
    crowd = await asyncio.gather(*(ask(client, record) for record in records))
    rows, batches = np.subtract(await batch_totals(client), before)
    assert rows == 64
    assert rows / batches > 4
    assert max(answer["batch_rows"] for answer in crowd) > 8
    for single, shared in zip(alone, crowd, strict=False):
        np.testing.assert_allclose(
            shared["predictions"][0]["probabilities"], single["predictions"][0]["probabilities"], rtol=0, atol=1e-6
        )


async def batch_totals(client: httpx.AsyncClient) -> tuple[float, float]:
    """Rows and batches so far, from /metrics."""
    lines = (await client.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return tuple(float(values[f'tabpfn_batch_rows_{part}{{model="fraud"}}']) for part in ("sum", "count"))  # type: ignore[return-value]


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
async def test_bad_input_is_refused_by_place_and_harms_nobody(
    client: httpx.AsyncClient, example: dict[str, Any], bad: BadRequest
) -> None:
    path = f"/v1/models/{bad.model or 'fraud'}/predict"
    content = bad.body(example, NUMBER)
    refused, beside = await asyncio.gather(
        client.request(bad.method, path, content=content, headers=dict(bad.headers)), ask(client, example)
    )
    problem = refused.json()
    assert 400 <= refused.status_code < 500
    assert (refused.status_code, problem["code"]) == (bad.status, bad.code)
    column = NUMBER if bad.column == NUMBER_COLUMN else bad.column
    assert (problem.get("row"), problem.get("column")) == (bad.row, column)
    assert beside["predictions"][0]["probabilities"][1] > 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"country": ["DE"]}, "wrong_type"),
        ({"country": {"iso": "DE"}}, "wrong_type"),
        ({"hour": "noon"}, "wrong_type"),
        ({"surprise": 1}, "unknown_column"),
    ],
)
async def test_bad_cells_of_the_demo(
    client: httpx.AsyncClient, example: dict[str, Any], change: dict[str, Any], code: str
) -> None:
    body = json.dumps({"records": [example, {**example, **change}]})
    answer = await client.post("/v1/models/fraud/predict", content=body, headers={"content-type": "application/json"})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["row"], problem["column"]) == (
        422,
        code,
        1,
        next(iter(change)),
    )


async def test_an_unseen_category_and_a_missing_value_are_answered(
    client: httpx.AsyncClient, example: dict[str, Any]
) -> None:
    strange = {**example, "country": "ZZ", "merchant_category": 7, "customer_age_years": None, "new_device": True}
    answer = await ask(client, strange, example)
    alone = await ask(client, example)
    np.testing.assert_allclose(
        answer["predictions"][1]["probabilities"], alone["predictions"][0]["probabilities"], rtol=0, atol=1e-6
    )
