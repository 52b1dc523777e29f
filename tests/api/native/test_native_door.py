"""The native door, end to end over FakeEngine."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from api_harness import EXAMPLE, FRAUD, PRICE, RECORDS, Gate, MakePredictor, Serving, outcomes, until_queued
from starlette.types import Message

from serve.api import create_app
from serve.core import QUANTILES, REGRESSION_STATISTICS, Batch, Column, ColumnKind, QueryTable
from serve.engine.fake import FakeContext, FakeEngine, fake_answer

NUMBERS = tuple(Column(name, ColumnKind.NUMBER) for name in EXAMPLE)


def expected(records: list[dict[str, float | None]], classes: tuple[str, ...] = ("0", "1")) -> list[list[float]]:
    context = FakeContext(NUMBERS, classes)
    return fake_answer(Batch(context, context.encode(QueryTable.from_records(records)))).tolist()


async def test_records_of_a_classifier(client: httpx.AsyncClient) -> None:
    response = await client.post(FRAUD, json={"records": RECORDS}, headers={"x-request-id": "r-1"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    rows = expected(RECORDS)
    timing = answer.pop("timing_ms")
    assert answer == {
        "model": "fraud",
        "version": "3",
        "classes": ["0", "1"],
        "predictions": [{"label": "0" if row[0] > row[1] else "1", "probabilities": row} for row in rows],
        "request_id": "r-1",
        "batch_rows": 3,
    }
    assert len({prediction["label"] for prediction in answer["predictions"]}) == 2, "both labels are seen"
    assert set(timing) == {"queue", "compute", "total"}
    assert timing["total"] >= timing["queue"] + timing["compute"] - 0.002
    assert min(timing.values()) >= 0


async def test_a_table_is_answered_like_its_records(client: httpx.AsyncClient) -> None:
    table = {"columns": ["age", "amount"], "data": [[record["age"], record["amount"]] for record in RECORDS]}
    answers = [(await client.post(FRAUD, json=body)).json() for body in ({"records": RECORDS}, table)]
    assert answers[0]["predictions"] == answers[1]["predictions"]


async def test_a_regressor(client: httpx.AsyncClient) -> None:
    answer = (await client.post(PRICE, json={"records": RECORDS})).json()
    assert "classes" not in answer
    for prediction, row in zip(answer["predictions"], expected(RECORDS, ()), strict=True):
        statistics = dict(zip(REGRESSION_STATISTICS, row, strict=True))
        assert prediction["mean"] == statistics["mean"]
        assert prediction["median"] == statistics["median"]
        assert prediction["quantiles"] == {str(level): statistics[f"q{100 * level:02.0f}"] for level in QUANTILES}
    assert list(answer["predictions"][0]["quantiles"]) == ["0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95"]


async def test_json_without_a_content_type_is_read(client: httpx.AsyncClient) -> None:
    response = await client.post(FRAUD, content=json.dumps({"records": RECORDS}).encode())
    assert "content-type" not in response.request.headers
    assert response.status_code == 200


async def test_the_example_can_be_posted(client: httpx.AsyncClient) -> None:
    description = (await client.get("/v1/models/fraud")).json()
    response = await client.post(FRAUD, json={"records": [description["example"]]})
    assert response.status_code == 200


async def test_models(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json() == {
        "models": [
            {"name": "fraud", "version": "3", "task": "classification", "description": "answers fraud"},
            {"name": "price", "version": "3", "task": "regression", "description": "answers price"},
        ]
    }
    assert (await client.get("/v1/models/fraud")).json() == {
        "name": "fraud",
        "version": "3",
        "task": "classification",
        "description": "answers fraud",
        "classes": ["0", "1"],
        "inputs": [
            {"name": "amount", "kind": "number", "description": "of the purchase, in euro"},
            {"name": "age", "kind": "number", "description": ""},
        ],
        "checkpoint": "fake-1",
        "licence": "Apache-2.0",
        "num_context_rows": 16,
        "num_members": 8,
        "max_rows": 256,
        "default_timeout_ms": 30_000.0,
        "device": "cpu",
        "backend": "compiled",
        "example": EXAMPLE,
    }
    assert (await client.get("/v1/models/price")).json()["classes"] == []


async def test_a_version_is_described_and_answers(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/fraud/versions/3")).json() == (await client.get("/v1/models/fraud")).json()
    response = await client.post("/v1/models/fraud/versions/3/predict", json={"records": RECORDS})
    assert response.status_code == 200
    assert response.json()["version"] == "3"
    whole = (await client.post(FRAUD, json={"records": RECORDS})).json()
    assert response.json()["predictions"] == whole["predictions"]


async def test_a_version_that_is_not_served_is_named(client: httpx.AsyncClient) -> None:
    for response in (
        await client.get("/v1/models/fraud/versions/2"),
        await client.post("/v1/models/fraud/versions/2/predict", json={"records": RECORDS}),
    ):
        assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
        assert "version '3', not '2'" in response.json()["detail"]
    assert outcomes((await client.get("/metrics")).text) == {("unknown", "unknown_model"): 1}


async def test_the_routes_answer_head_requests_too(client: httpx.AsyncClient) -> None:
    for path in ("/v1/models", "/v2/health/ready", "/ping", "/openapi.json"):
        assert (await client.head(path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/models//predict", 404, "unknown_route"),
        ("POST", "/v1/models/fraud/versions//predict", 404, "unknown_route"),
        ("POST", "/v1/models/fraud/versions/3/4/predict", 404, "unknown_route"),
        ("GET", "/v1/models/nothing/versions/3", 404, "unknown_model"),
        ("GET", "/v1/models/nothing", 404, "unknown_model"),
        ("GET", "/v1/nothing", 404, "unknown_route"),
        ("POST", "/v1/models/fraud/predict/", 404, "unknown_route"),
        ("DELETE", "/v1/models/fraud", 405, "method_not_allowed"),
        ("GET", "/docs/assets/nothing.js", 404, "unknown_route"),
    ],
)
async def test_wrong_addresses_are_problems(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await client.request(method, path, headers={"x-request-id": "r-2"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    allowed = {"GET", "HEAD"} if status == 405 else {""}
    assert set(response.headers.get("allow", "").split(", ")) == allowed
    assert (response.json()["code"], response.json()["request_id"]) == (code, "r-2")


async def test_callers_share_batches_and_each_gets_its_own(
    make_predictor: MakePredictor, serving: Serving, gate: Gate
) -> None:
    async with serving(make_predictor(FakeEngine(gate=gate))) as client:
        gate.shut()
        first = asyncio.create_task(client.post(FRAUD, json={"records": RECORDS[:1]}))
        await asyncio.to_thread(gate.wait_for_batch)
        rows = [{"amount": float(number), "age": number} for number in range(20)]
        others = [asyncio.create_task(client.post(FRAUD, json={"records": [row]})) for row in rows]
        await until_queued(client, 20)
        gate.open()
        answers = [response.json() for response in await asyncio.gather(*others)]
        assert (await first).json()["batch_rows"] == 1
    assert [answer["batch_rows"] for answer in answers] == [20] * 20
    assert [answer["predictions"][0]["probabilities"] for answer in answers] == expected(rows)


async def test_a_full_replica_refuses_at_once(make_predictor: MakePredictor, serving: Serving, gate: Gate) -> None:
    async with serving(make_predictor(FakeEngine(gate=gate), max_ongoing_requests=1)) as client:
        gate.shut()
        first = asyncio.create_task(client.post(FRAUD, json={"records": RECORDS}))
        await asyncio.to_thread(gate.wait_for_batch)
        refused = await client.post(FRAUD, json={"records": RECORDS})
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        gate.open()
        assert (await first).status_code == 200


async def test_an_engine_fault_says_nothing_of_its_cause(
    make_predictor: MakePredictor, serving: Serving, gate: Gate
) -> None:
    async with serving(make_predictor(FakeEngine(gate=gate))) as client:
        gate.error = RuntimeError("CUDA error: device-side assert at /secret")
        response = await client.post(FRAUD, json={"records": RECORDS})
        assert (response.status_code, response.json()["code"]) == (500, "engine_error")
        assert "secret" not in response.text
        gate.error = None
        assert (await client.post(FRAUD, json={"records": RECORDS})).status_code == 200


async def test_every_request_is_counted_once(make_predictor: MakePredictor, serving: Serving, gate: Gate) -> None:
    predictor = make_predictor(FakeEngine(gate=gate))
    async with serving(predictor) as client:
        for _ in range(3):
            await client.post(FRAUD, json={"records": RECORDS})
        await client.post(PRICE, json={"records": RECORDS})
        await client.post(FRAUD, content=b"{")
        await client.post("/v1/models/invented/predict", json={"records": RECORDS})
        await client.post(FRAUD, content=b" " * 30_000)
        gate.error = RuntimeError("device")
        await client.post(FRAUD, json={"records": RECORDS})
        text = (await client.get("/metrics")).text
    assert outcomes(text) == {
        ("fraud", "ok"): 3,
        ("price", "ok"): 1,
        ("fraud", "invalid_json"): 1,
        ("unknown", "unknown_model"): 1,
        ("fraud", "too_large"): 1,
        ("fraud", "engine_error"): 1,
    }
    assert 'tabpfn_request_seconds_count{model="fraud"} 3.0' in text


async def test_rows_of_a_caller_who_left_are_not_computed(
    make_predictor: MakePredictor, serving: Serving, gate: Gate
) -> None:
    predictor = make_predictor(FakeEngine(gate=gate))
    async with serving(predictor) as client:
        gate.shut()
        first = asyncio.create_task(client.post(FRAUD, json={"records": RECORDS}))
        await asyncio.to_thread(gate.wait_for_batch)
        left = asyncio.Event()
        leaving = asyncio.create_task(post_and_leave(predictor, left))
        staying = asyncio.create_task(client.post(FRAUD, json={"records": [{"amount": 2, "age": 2}]}))
        await until_queued(client, 2)
        left.set()
        await leaving
        gate.open()
        assert [(await task).status_code for task in (first, staying)] == [200, 200]
        assert outcomes((await client.get("/metrics")).text)["fraud", "client_disconnected"] == 1
    assert gate.batches[1:] == [[[2.0, 2.0]]]


async def post_and_leave(predictor: object, left: asyncio.Event) -> None:
    """One request over bare ASGI, whose client goes when `left` is set."""
    messages = iter([{"type": "http.request", "body": b'{"records": [{"amount": 9, "age": 9}]}', "more_body": False}])

    async def receive() -> Message:
        if message := next(messages, None):
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": FRAUD, "headers": [], "query_string": b"", "root_path": ""}
    await create_app(predictor)(scope, receive, send)  # type: ignore[arg-type]
