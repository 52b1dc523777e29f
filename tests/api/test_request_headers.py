"""`x-request-timeout-ms` and `x-priority`: read, refused, and obeyed."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import httpx
import pytest
from api_harness import FRAUD, RECORDS, Gate, MakePredictor, Serving, outcomes, until_queued

from serve.api import create_app
from serve.api.request_headers import MAX_TIMEOUT_MS, read_deadline_and_priority
from serve.core import Priority
from serve.core.errors import InvalidInput
from serve.engine.fake import FakeEngine


def test_without_headers_a_request_is_interactive_and_has_the_models_time() -> None:
    assert read_deadline_and_priority([(b"content-type", b"application/json")]) == (None, Priority.INTERACTIVE)


@pytest.mark.parametrize(
    ("value", "timeout_s"), [(b"1", 0.001), (b"0250", 0.25), (b" 1500 ", 1.5), (str(MAX_TIMEOUT_MS).encode(), 86_400)]
)
def test_a_timeout_is_whole_milliseconds(value: bytes, timeout_s: float) -> None:
    assert read_deadline_and_priority([(b"x-request-timeout-ms", value)])[0] == timeout_s


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"+5", b"1.5", b"1e3", b"nan", b"soon", b"86400001", b"1" * 9_999])
def test_other_timeouts_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidInput, match="whole number of milliseconds from 1 to 86400000") as refused:
        read_deadline_and_priority([(b"x-request-timeout-ms", value)])
    assert refused.value.code == "invalid_timeout"


def test_priorities() -> None:
    assert read_deadline_and_priority([(b"x-priority", b"bulk")])[1] is Priority.BULK
    assert read_deadline_and_priority([(b"x-priority", b"interactive")])[1] is Priority.INTERACTIVE
    for value in (b"", b"BULK", b"high", b"\xff"):
        with pytest.raises(InvalidInput, match="interactive or bulk") as refused:
            read_deadline_and_priority([(b"x-priority", value)])
        assert refused.value.code == "invalid_priority"


@pytest.mark.parametrize("headers", [{"x-request-timeout-ms": "60000"}, {"x-priority": "bulk"}])
async def test_a_request_with_them_is_answered(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.post(FRAUD, json={"records": RECORDS}, headers=headers)
    assert response.status_code == 200


async def test_a_request_that_expires_in_the_queue_is_answered_with_504_and_not_computed(
    make_predictor: MakePredictor, serving: Serving, gate: Gate
) -> None:
    async with serving(make_predictor(FakeEngine(gate=gate))) as client:
        gate.shut()
        first = asyncio.create_task(client.post(FRAUD, json={"records": RECORDS[:1]}))
        await asyncio.to_thread(gate.wait_for_batch)
        late = await ask_until_admitted(client)
        assert late.status_code == 504
        assert late.json()["code"] == "deadline_exceeded"
        gate.open()
        assert (await first).status_code == 200
        assert outcomes((await client.get("/metrics")).text)["fraud", "deadline_exceeded"] == 1
    assert len(gate.batches) == 1


async def test_a_request_without_a_timeout_has_the_default_of_its_model(
    make_predictor: MakePredictor, serving: Serving, gate: Gate
) -> None:
    async with serving(make_predictor(FakeEngine(gate=gate), default_timeout_ms=50.0)) as client:
        gate.shut()
        late = await client.post(FRAUD, json={"records": RECORDS[:1]})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert "within the 50 ms" in late.json()["detail"]
        gate.open()


async def ask_until_admitted(client: httpx.AsyncClient) -> httpx.Response:
    """A batch that is late is expected to take as long again, so on a busy machine a short time is refused first."""
    for timeout_ms in (100, 1_000, 10_000):
        headers = {"x-request-timeout-ms": str(timeout_ms)}
        response = await client.post(FRAUD, json={"records": RECORDS[1:]}, headers=headers)
        if response.status_code != 429:
            return response
    return response


async def test_a_request_that_would_be_late_is_answered_with_429_and_when_to_come_back(
    make_predictor: MakePredictor, serving: Serving, gate: Gate
) -> None:
    async with serving(make_predictor(FakeEngine(gate=gate), max_ongoing_rows=2)) as client:
        gate.shut()
        first = asyncio.create_task(client.post(FRAUD, json={"records": RECORDS[:2]}))
        await asyncio.to_thread(gate.wait_for_batch)
        refused = await client.post(FRAUD, json={"records": RECORDS})
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        text = (await client.get("/metrics")).text
        assert 'tabpfn_refused_requests_total{model="fraud",reason="rows"} 1.0' in text
        gate.open()
        assert (await first).status_code == 200


async def test_a_request_that_no_idle_server_could_answer_in_time_is_a_422_and_no_invitation_to_ask_again(
    make_predictor: MakePredictor, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(step=3600)
    monkeypatch.setattr("serve.engine.checks.warmup.time", SimpleNamespace(perf_counter=lambda: float(next(hours))))
    predictor = make_predictor()
    fast_path = create_app(predictor).fast_path
    async with serving(predictor) as client:
        headers = {"x-request-timeout-ms": "10000"}
        refused = await client.post(FRAUD, json={"records": RECORDS}, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (422, "deadline_too_short")
        assert "allow more time, or send fewer rows" in refused.json()["detail"]
        assert "retry-after" not in refused.headers
        early = fast_path.begin("POST", FRAUD, [(b"x-request-timeout-ms", b"10000"), (b"content-length", b"2")])
        assert early is not None
        assert early.refusal is not None
        assert early.refusal.status_code == 422
        await asyncio.sleep(0)  # outcomes are reported once a turn
        text = (await client.get("/metrics")).text
        assert 'tabpfn_refused_requests_total{model="fraud",reason="too_short"} 2.0' in text
        assert outcomes(text)["fraud", "deadline_too_short"] == 2


async def test_a_large_request_is_split_and_answered_in_order(
    make_predictor: MakePredictor, serving: Serving, gate: Gate
) -> None:
    records = [{"amount": row / 7, "age": row} for row in range(200)]
    async with serving(make_predictor(FakeEngine(gate=gate))) as client:
        gate.shut()
        gate.open()
        whole = (await client.post(FRAUD, json={"records": records})).json()
        assert [len(batch) for batch in gate.batches] == [64, 64, 64, 8]
        assert whole["batch_rows"] == 8
        parts = [
            (await client.post(FRAUD, json={"records": records[start : start + 50]})).json()["predictions"]
            for start in range(0, 200, 50)
        ]
    assert whole["predictions"] == [prediction for part in parts for prediction in part]


async def test_interactive_requests_overtake_bulk(make_predictor: MakePredictor, serving: Serving, gate: Gate) -> None:
    async with serving(make_predictor(FakeEngine(gate=gate))) as client:
        gate.shut()
        first = asyncio.create_task(client.post(FRAUD, json={"records": RECORDS[:1]}))
        await asyncio.to_thread(gate.wait_for_batch)
        body = {"records": [{"amount": 7, "age": 7}] * 100}
        bulk = asyncio.create_task(client.post(FRAUD, json=body, headers={"x-priority": "bulk"}))
        await until_queued(client, 1)
        urgent = asyncio.create_task(client.post(FRAUD, json={"records": [{"amount": 9, "age": 9}]}))
        await until_queued(client, 2)
        gate.open()
        assert [(await task).status_code for task in (first, bulk, urgent)] == [200, 200, 200]
    assert gate.batches[1][0] == [9.0, 9.0]
    assert sum(len(batch) for batch in gate.batches) == 102
