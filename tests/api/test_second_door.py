"""A door that the server does not know (`csv_door.py`) is mounted beside the native one, and has all that it has."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest
import uvicorn
from api_harness import FRAUD, RECORDS, Gate, MakePredictor, outcomes
from csv_door import CsvDoor
from ports import free_port
from starlette.responses import Response

from serve.api import create_app
from serve.api.door import RequestHead
from serve.api.native.door import NativeDoor
from serve.core import PredictRequest
from serve.edges.connection_guard import ConnectionGuard
from serve.edges.fast_path_protocol import FastPathProtocol, Outbox
from serve.engine.fake import FakeEngine
from serve.replica.large_requests import SMALL_BYTES
from serve.replica.predictor import Predictor

CSV = "amount,age\n1.5,30\n,60\n"
FRAUD_CSV = "/csv/fraud"


@asynccontextmanager
async def two_doors(predictor: Predictor, second: type[CsvDoor] = CsvDoor) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(predictor, doors=[NativeDoor, second])
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
async def client(make_predictor: MakePredictor) -> AsyncIterator[httpx.AsyncClient]:
    async with two_doors(make_predictor()) as client:
        yield client


async def test_it_serves_beside_the_native_door(client: httpx.AsyncClient) -> None:
    response = await client.post(FRAUD_CSV, content=CSV, headers={"x-request-id": "r-1"})
    native = (await client.post(FRAUD, json={"records": RECORDS[:1]})).json()
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "r-1"
    rows = [[float(cell) for cell in line.split(",")] for line in response.text.splitlines()]
    assert rows[0] == native["predictions"][0]["probabilities"]
    assert len(rows) == 2
    assert (await client.get("/csv")).text == "amount,age\n"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "text"),
    [
        (FRAUD_CSV, "amount,age\n1,2\n1,old\n", {}, 422, "wrong_type row=1"),
        (FRAUD_CSV, "amount\n1\n", {}, 422, "missing_column row=None"),
        (FRAUD_CSV, CSV, {"x-priority": "first"}, 422, "invalid_priority row=None"),
        (FRAUD_CSV, CSV, {"x-request-id": "x" * 129}, 400, "invalid_header row=None"),
        (FRAUD_CSV, " " * 30_000, {}, 413, "too_large row=None"),
        ("/csv/nothing", CSV, {}, 404, "unknown_model row=None"),
        ("/csv/fraud/more", CSV, {}, 404, "unknown_route row=None"),
    ],
)
async def test_it_refuses_in_its_own_format(
    client: httpx.AsyncClient, path: str, body: str, headers: dict[str, str], status: int, text: str
) -> None:
    response = await client.post(path, content=body, headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text.startswith(text)


async def test_every_error_at_its_paths_is_in_its_format(client: httpx.AsyncClient) -> None:
    chunks = (b" " * 10_000 for _ in range(3))

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    for response, code in (
        (await client.get(FRAUD_CSV), "method_not_allowed"),
        (await client.post(FRAUD_CSV, content=body()), "too_large"),
        (await client.request("GET", "/csv", content=b" " * 30_000), "too_large"),
        (await client.get("/csv/", headers={"x-request-id": "x" * 129}), "invalid_header"),
    ):
        assert response.headers["content-type"].startswith("text/plain") == response.request.url.path.startswith(
            "/csv/"
        )
        assert code in response.text


async def test_a_fault_of_the_door_is_an_internal_error_and_counted(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.post(FRAUD_CSV, content=b"\xff", headers={"x-request-id": "r-9"})
    assert (response.status_code, response.text.split()[0]) == (500, "internal_error")
    assert response.headers["x-request-id"] == "r-9"
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["request r-9 failed"]
    assert outcomes((await client.get("/metrics")).text) == {("fraud", "internal_error"): 1}


async def test_each_of_its_requests_is_counted_once(client: httpx.AsyncClient) -> None:
    for path, body, headers in (
        (FRAUD_CSV, CSV, {}),
        (FRAUD_CSV, "amount\n1\n", {}),
        (FRAUD_CSV, " " * 30_000, {}),
        (FRAUD_CSV, CSV, {"x-request-id": ""}),
        ("/csv/nothing", CSV, {}),
    ):
        await client.post(path, content=body, headers=headers)
    await client.get("/csv")
    assert outcomes((await client.get("/metrics")).text) == {
        ("fraud", "ok"): 1,
        ("fraud", "missing_column"): 1,
        ("fraud", "too_large"): 1,
        ("fraud", "invalid_header"): 1,
        ("unknown", "unknown_model"): 1,
    }


@pytest.mark.parametrize(("padding", "is_on_the_loop"), [(0, True), (SMALL_BYTES, False)])
async def test_a_large_body_is_read_and_answered_on_another_thread(
    make_predictor: MakePredictor, padding: int, is_on_the_loop: bool
) -> None:
    threads: list[int] = []

    class SeenDoor(CsvDoor):
        def read(self, head: RequestHead, body: bytes) -> PredictRequest:
            threads.append(threading.get_ident())
            return super().read(head, body.rstrip())

        def write(self, *answer: Any) -> Response:
            threads.append(threading.get_ident())
            return super().write(*answer)

    async with two_doors(make_predictor(max_body_bytes=2 * SMALL_BYTES), SeenDoor) as client:
        assert (await client.post(FRAUD_CSV, content=CSV + " " * padding)).status_code == 200
    assert [thread == threading.get_ident() for thread in threads] == [is_on_the_loop] * 2


async def test_its_part_of_openapi_is_joined(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"/csv/{model}", "/csv", "/v1/models/{model}/predict", "/metrics"} <= set(document["paths"])
    assert {"Csv", "Query"} <= set(document["components"]["schemas"])
    assert document["info"]["description"].endswith("Or as CSV.")
    assert "csv" in [tag["name"] for tag in document["tags"]]


async def test_it_is_refused_early_in_its_own_format(make_predictor: MakePredictor, gate: Gate) -> None:
    predictor = make_predictor(FakeEngine(gate=gate), max_ongoing_requests=1)
    app = create_app(predictor, doors=[NativeDoor, CsvDoor])
    async with app.router.lifespan_context(app), _listening(app, predictor) as client:
        gate.shut()
        first = asyncio.create_task(client.post(FRAUD, json={"records": RECORDS}))
        await asyncio.to_thread(gate.wait_for_batch)
        unread = "neither,CSV\nnor,a,table"  # a door that read this body would answer with another error
        refused = await client.post(FRAUD_CSV, content=unread, headers={"x-request-id": "r-2"})
        assert (refused.status_code, refused.headers["x-request-id"]) == (429, "r-2")
        assert refused.text.startswith("overloaded row=None")
        native = await client.post(FRAUD, content=b"{")
        assert json.loads(native.content)["code"] == "overloaded"
        gate.open()
        assert (await first).status_code == 200
        assert outcomes((await client.get("/metrics")).text) == {("fraud", "overloaded"): 2, ("fraud", "ok"): 1}


@asynccontextmanager
async def _listening(app: Any, predictor: Predictor) -> AsyncIterator[httpx.AsyncClient]:
    """The app over a real socket, where early refusals are made."""
    port = free_port()
    guard = ConnectionGuard(predictor.settings.api, predictor.recorder, app.render_unrouted)
    protocol = cast(Any, functools.partial(FastPathProtocol, fast_path=app.fast_path, outbox=Outbox(), guard=guard))
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, http=protocol, lifespan="off", log_config=None, loop="none", ws="none")
    )
    task = asyncio.create_task(server.serve())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0)
        yield client
    server.should_exit = True
    await task
