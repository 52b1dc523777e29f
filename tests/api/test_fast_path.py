"""What the fast path takes, what it leaves to ASGI, what it remembers of headers, and that its requests end once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from api_harness import outcomes
from predictor_harness import make
from starlette.responses import Response

from serve.api import create_app
from serve.api.door import RawHeaders
from serve.api.fast_path import FastPath, FastRequest
from serve.api.native.door import NativeDoor
from serve.core import Batch, ModelReference
from serve.engine.fake import FakeEngine
from serve.replica.large_requests import SMALL_BYTES, SMALL_ROWS
from serve.replica.predictor import Predictor

PREDICT = "/v1/models/fraud/predict"


def body(num_rows: int = 1) -> bytes:
    return json.dumps({"records": [{"amount": 3.0}] * num_rows}).encode()


def headers(num_bytes: int | str = 100, *more: tuple[bytes, bytes]) -> RawHeaders:
    return [(b"host", b"test"), (b"content-length", str(num_bytes).encode()), *more]


@dataclass
class Replica:
    predictor: Predictor
    fast_path: FastPath
    release: threading.Event
    responses: list[Response] = field(default_factory=list)

    def ask(self, data: bytes, *more: tuple[bytes, bytes]) -> FastRequest:
        """A request whose body comes with its headers."""
        request = self.fast_path.begin("POST", PREDICT, headers(len(data), *more))
        assert request is not None
        assert request.refusal is None
        self.fast_path.submit(request, data, self.responses.append)
        return request

    async def answered(self, num_requests: int) -> list[int]:
        """The statuses, once there are so many."""
        async with asyncio.timeout(20):
            while len(self.responses) < num_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return [response.status_code for response in self.responses]

    async def counted(self) -> dict[tuple[str, str], float]:
        await asyncio.sleep(0)
        return outcomes(self.predictor.telemetry.prometheus.render().decode())


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    started, release = threading.Event(), threading.Event()

    def hold(_: Batch) -> None:
        assert not started.is_set() or release.wait(20)

    predictor = make(FakeEngine(gate=hold), batching={"max_ongoing_requests": 2})
    await predictor.start()
    started.set()
    yield Replica(predictor, create_app(predictor).fast_path, release)
    release.set()
    await predictor.close()


async def test_a_request_is_answered_and_counted_once(replica: Replica) -> None:
    replica.release.set()
    request = replica.ask(body(), (b"x-request-id", b"r-1"))
    assert await replica.answered(1) == [200]
    assert (b"x-request-id", b"r-1") in replica.responses[0].raw_headers
    replica.fast_path.leave(request)
    assert await replica.counted() == {("fraud", "ok"): 1}


async def test_a_small_body_of_many_rows_is_answered_too(replica: Replica) -> None:
    replica.release.set()
    data = body(SMALL_ROWS + 1)
    assert len(data) <= SMALL_BYTES
    replica.ask(data)
    assert await replica.answered(1) == [200]
    assert len(json.loads(bytes(replica.responses[0].body))["predictions"]) == SMALL_ROWS + 1


@pytest.mark.parametrize("num_rows", [1, SMALL_ROWS + 1])
async def test_a_caller_that_leaves_has_no_response_and_is_counted_once(replica: Replica, num_rows: int) -> None:
    keeper = replica.ask(body())
    left = replica.ask(body(num_rows))
    for _ in range(2):
        replica.fast_path.leave(left)
    assert await replica.counted() == {("fraud", "client_disconnected"): 1}
    replica.release.set()
    assert await replica.answered(1) == [200]
    assert keeper.is_counted
    assert await replica.counted() == {("fraud", "client_disconnected"): 1, ("fraud", "ok"): 1}


async def test_a_fault_of_the_body_is_answered_at_once(replica: Replica) -> None:
    replica.ask(b'{"records": [{"amount": "much"}]}')
    replica.ask(b"{")
    assert [response.status_code for response in replica.responses] == [422, 400]
    assert await replica.counted() == {("fraud", "wrong_type"): 1, ("fraud", "invalid_json"): 1}


async def test_a_fault_of_the_server_is_logged_and_names_no_cause(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("of the server")

    monkeypatch.setattr(NativeDoor, "read", fail)
    replica.ask(body(), (b"x-request-id", b"r-1"))
    assert replica.responses[0].status_code == 500
    assert b"of the server" not in bytes(replica.responses[0].body)
    assert "request r-1 failed" in caplog.text
    assert await replica.counted() == {("fraud", "internal_error"): 1}


async def test_admission_is_asked_again_where_the_body_came_later(replica: Replica) -> None:
    """Two requests pass by their headers where there is room for one: the second body is refused."""
    replica.ask(body())
    first, second = (replica.fast_path.begin("POST", PREDICT, headers(len(body()))) for _ in range(2))
    for request in (first, second):
        assert request is not None
        request.is_prechecked = False  # as the protocol says where a packet ends before the body
        replica.fast_path.submit(request, body(), replica.responses.append)
    assert [response.status_code for response in replica.responses] == [429]


@pytest.mark.parametrize(
    ("method", "target", "given"),
    [
        ("GET", PREDICT, headers()),
        ("POST", PREDICT + "?x=1", headers()),
        ("POST", "/v1/models", headers()),
        ("POST", "/v1/models/other/predict", headers()),
        ("POST", PREDICT, [(b"host", b"test")]),
        ("POST", PREDICT, headers("many")),
        ("POST", PREDICT, headers("9" * 5000)),
        ("POST", PREDICT, headers(SMALL_BYTES + 1)),
        ("POST", PREDICT, headers(2**40)),
        ("POST", PREDICT, headers(10, (b"expect", b"100-continue"))),
        ("POST", PREDICT, headers(10, (b"transfer-encoding", b"chunked"))),
        ("POST", PREDICT, headers(10, (b"upgrade", b"h2c"))),
        ("POST", PREDICT, headers(10, (b"content-type", b"text/csv"))),
        ("POST", PREDICT, headers(10, (b"content-encoding", b"gzip"))),
        ("POST", PREDICT, headers(10, (b"x-priority", b"first"))),
        ("POST", PREDICT, headers(10, (b"x-request-timeout-ms", b"soon"))),
        ("POST", PREDICT, headers(10, (b"x-request-id", b""))),
        ("POST", PREDICT, headers(10, (b"x-request-id", b"x" * 129))),
    ],
)
async def test_all_else_is_left_to_asgi(replica: Replica, method: str, target: str, given: RawHeaders) -> None:
    for _ in range(2):  # also where the decision is remembered
        assert replica.fast_path.begin(method, target, given) is None
    assert await replica.counted() == {}


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that the door was asked for."""
    seen: list[str] = []
    ordinary = NativeDoor.match

    def match(door: NativeDoor, method: str, path: str, given: RawHeaders) -> ModelReference | None:
        seen.append(path)
        return ordinary(door, method, path, given)

    monkeypatch.setattr(NativeDoor, "match", match)
    return seen


async def test_equal_headers_are_decided_once(replica: Replica, matched: list[str]) -> None:
    timeout_s = {}
    for timeout_ms in (b"5000", b"9000") * 2:
        for number in range(3):
            own = (b"x-request-id", b"%d" % number), (b"user-agent", b"%d" % number)
            more = (*own, (b"x-request-timeout-ms", timeout_ms))
            request = replica.fast_path.begin("POST", PREDICT, headers(10 + number, *more))
            assert request is not None
            timeout_s[timeout_ms] = request.head.deadline - request.head.arrived_at
    assert len(matched) == 2
    assert timeout_s == pytest.approx({b"5000": 5.0, b"9000": 9.0})


async def test_callers_cannot_fill_the_memory_with_headers(replica: Replica, matched: list[str]) -> None:
    for number in range(1000):
        replica.fast_path.begin("POST", f"/v1/models/m{number}/predict", headers())
    assert len(replica.fast_path._decisions) <= 256
    del matched[:]
    for _ in range(2):
        replica.fast_path.begin("POST", PREDICT, headers(10, (b"content-type", b"application/json; x=" + b"y" * 2000)))
    assert len(matched) == 2, "what is long is not remembered"
