"""A refusal at the headers, over real sockets: the same answer as after the body, and a connection that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
from fronts_harness import FrontsOnThisLoop
from ports import free_port
from predictor_harness import make

from serve.api.door import RequestHead
from serve.api.native.door import NativeDoor
from serve.core import Batch, PredictRequest
from serve.edges.connection_guard import ConnectionGuard
from serve.edges.fronts import report
from serve.edges.sockets import bind
from serve.edges.uvicorn_server import EmbeddedServer
from serve.engine.fake import FakeEngine
from serve.replica.lifecycle import ReplicaLifecycle
from serve.replica.predictor import Predictor

BODY = json.dumps({"records": [{"amount": 3.0}]}).encode()
PREDICT = "/v1/models/fraud/predict"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


class Caller:
    """One connection, spoken on by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, *headers: str, body: bytes = BODY, **request: str) -> None:
        self.send(head(f"Content-Length: {len(body)}", *headers, **request) + body)

    async def answer(self) -> Answer:
        lines = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 20)).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return Answer(int(lines[0].split()[1]), headers, await self._reader.readexactly(int(headers["content-length"])))

    async def line(self) -> bytes:
        return await asyncio.wait_for(self._reader.readline(), 20)

    async def at_end(self) -> bool:
        return await asyncio.wait_for(self._reader.read(), 20) == b""


def head(*headers: str, method: str = "POST", path: str = PREDICT, version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: test", *headers, "", ""]).encode()


CHUNKED = head("Transfer-Encoding: chunked", "x-request-id: r-1") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
"""A request that goes the ordinary road, since nobody knows how long it is."""


@dataclass
class Full:
    """A replica that takes one request and has it, and what of the requests was read."""

    port: int
    server: EmbeddedServer | FrontsOnThisLoop
    lifecycle: ReplicaLifecycle
    first: Caller
    """Whose request it has."""
    release: threading.Event
    read: list[str] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)

    async def connect(self) -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        self.callers.append(caller)
        return caller

    async def counted(self) -> dict[str, float]:
        """The counts once there are any."""
        return await self.counts() or await self.counted()

    async def counts(self) -> dict[str, float]:
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{self.port}/metrics")).text
        found = re.findall(r"^(tabpfn_(?:refused_)?requests_total\{.*\}) (\S+)$", text, re.M)
        return {name: float(value) for name, value in found}


def server_of(predictor: Predictor, port: int, num_fronts: int | None) -> EmbeddedServer | FrontsOnThisLoop:
    if num_fronts is None:
        return EmbeddedServer.at(predictor, "127.0.0.1", port)
    return FrontsOnThisLoop(predictor, functools.partial(bind, "127.0.0.1", port), num_fronts)


def guards_of(server: EmbeddedServer | FrontsOnThisLoop) -> list[ConnectionGuard]:
    servers = [server] if isinstance(server, EmbeddedServer) else server.servers
    return [each._guard for each in servers if each._guard is not None]


@pytest.fixture(params=[None, 2], ids=["one process", "two fronts"])
async def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Full]:
    """The fronts are on the loop of the test (`fronts_harness.py`), and the admission board shows the request."""
    started, entered, release = threading.Event(), threading.Event(), threading.Event()

    def hold(_: Batch) -> None:
        if started.is_set():
            entered.set()
            assert release.wait(20)

    predictor = make(FakeEngine(gate=hold), batching={"max_ongoing_requests": 1})
    port = free_port()
    monkeypatch.setattr(report, "PERIOD_S", 0.0)
    server = server_of(predictor, port, request.param)
    lifecycle = ReplicaLifecycle(predictor, [server])
    await lifecycle.start()
    started.set()
    first = Caller(*await asyncio.open_connection("127.0.0.1", port))
    first.ask()
    replica = Full(port, server, lifecycle, first, release, callers=[first])
    await asyncio.to_thread(entered.wait, 20)
    if isinstance(server, FrontsOnThisLoop):
        assert server._board is not None
        server._board.write()
    ordinary = NativeDoor.read

    def seen(native: NativeDoor, head: RequestHead, body: bytes) -> PredictRequest:
        replica.read.append(head.reference.name)
        return ordinary(native, head, body)

    monkeypatch.setattr(NativeDoor, "read", seen)
    yield replica
    release.set()
    for caller in replica.callers:
        caller.writer.close()
        with contextlib.suppress(ConnectionError):
            await caller.writer.wait_closed()
    await lifecycle.stop()


async def test_it_is_the_answer_of_the_ordinary_road(full: Full) -> None:
    caller = await full.connect()
    caller.ask("x-request-id: r-1")
    early = await caller.answer()
    assert not full.read
    caller.send(CHUNKED)
    ordinary = await caller.answer()
    assert full.read == ["fraud"]
    assert (early.status, early.code, early.headers["x-request-id"]) == (429, "overloaded", "r-1")
    assert int(early.headers["retry-after"]) >= 1
    assert early.body == ordinary.body
    assert list(early.headers) == list(ordinary.headers)
    for answer in (early, ordinary):
        del answer.headers["date"]
    assert early.headers == ordinary.headers


async def test_both_are_counted_alike(full: Full) -> None:
    caller = await full.connect()
    caller.ask()
    await caller.answer()
    once = await full.counts()
    assert once == {
        'tabpfn_requests_total{model="fraud",outcome="overloaded"}': 1,
        'tabpfn_refused_requests_total{model="fraud",reason="requests"}': 1,
    }
    caller.send(CHUNKED)
    await caller.answer()
    assert await full.counts() == dict.fromkeys(once, 2)


async def test_a_connection_goes_on_and_is_idle_from_its_last_answer(full: Full) -> None:
    caller = await full.connect()
    for _ in range(3):
        caller.ask()
        assert (await caller.answer()).status == 429
    assert not full.read
    guards = guards_of(full.server)
    other = await full.connect()
    other.ask()
    assert (await other.answer()).status == 429
    for guard in guards:
        guard.sweep(guard.keep_alive_s - 1)
    caller.ask()
    assert (await caller.answer()).status == 429
    for guard in guards:
        guard.sweep(2.0)
    assert await other.at_end(), "a refusal is an answer, from which the connection is idle"
    full.release.set()
    assert (await full.first.answer()).status == 200
    caller.ask()
    assert (await caller.answer()).status == 200


@pytest.mark.parametrize(("header", "version"), [("Connection: close", "1.1"), ("x: y", "1.0")])
async def test_a_caller_who_wants_the_end_has_it(full: Full, header: str, version: str) -> None:
    caller = await full.connect()
    caller.ask(header, version=version)
    answer = await caller.answer()
    assert (answer.status, answer.headers["connection"]) == (429, "close")
    assert await caller.at_end()
    assert not full.read


async def test_a_body_in_pieces_is_awaited_and_thrown_away(full: Full) -> None:
    caller, large = await full.connect(), b"x" * 2**20
    caller.send(head(f"Content-Length: {len(large)}"))
    for start in range(0, len(large), 2**16):
        caller.send(large[start : start + 2**16])
        await caller.writer.drain()
    caller.ask("x-request-id: next")
    assert [(await caller.answer()).status, (await caller.answer()).headers["x-request-id"]] == [429, "next"]
    assert not full.read


async def test_pipelined_requests_are_answered_in_their_order(full: Full) -> None:
    caller = await full.connect()
    for number in range(4):
        caller.ask(f"x-request-id: {number}")
    caller.send(head("x-request-id: 4", method="GET", path="/v1/models"))
    caller.ask("x-request-id: 5")  # behind one that is not answered yet
    caller.ask("x-request-id: 6")
    answers = [await caller.answer() for _ in range(7)]
    assert [answer.headers["x-request-id"] for answer in answers] == list("0123456")
    assert [answer.status for answer in answers] == [429] * 4 + [200] + [429] * 2
    assert full.read[:1] == ["fraud"], "an answer is never written before one that is due first"


async def test_a_body_that_waits_to_be_asked_for_is_asked_for(full: Full) -> None:
    caller = await full.connect()
    caller.send(head(f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
    assert await caller.line() == b"HTTP/1.1 100 Continue\r\n"
    assert await caller.line() == b"\r\n"
    caller.send(BODY)
    assert (await caller.answer()).status == 429


@pytest.mark.parametrize(
    ("headers", "path", "status", "code"),
    [
        ([f"Content-Length: {2**40}"], PREDICT, 413, "too_large"),
        (["Content-Length: 0", "x-priority: first"], PREDICT, 422, "invalid_priority"),
        (["Content-Length: 0", "x-request-timeout-ms: soon"], PREDICT, 422, "invalid_timeout"),
        (["Content-Length: 0", f"x-request-id: {'x' * 200}"], PREDICT, 400, "invalid_header"),
        (["Content-Length: 0"], "/v1/models/other/predict", 404, "unknown_model"),
        (["Content-Length: 0"], "/v1/models/fraud/predict/", 404, "unknown_route"),
    ],
)
async def test_what_is_wrong_with_a_request_is_still_told(
    full: Full, headers: list[str], path: str, status: int, code: str
) -> None:
    caller = await full.connect()
    caller.send(head(*headers, path=path))
    answer = await caller.answer()
    assert (answer.status, answer.code) == (status, code)


async def test_what_is_no_http_is_refused_as_ever(full: Full) -> None:
    caller = await full.connect()
    caller.ask()
    assert (await caller.answer()).status == 429
    caller.send(head("Content-Length: 5", "Transfer-Encoding: chunked"))
    assert (await caller.answer()).status == 400
    assert await caller.at_end()


async def test_a_caller_who_leaves_is_counted_once(full: Full) -> None:
    caller = await full.connect()
    caller.send(head("Content-Length: 100"))
    counts = await full.counted()
    caller.writer.close()
    await caller.writer.wait_closed()
    assert await full.counts() == counts
    assert set(counts.values()) == {1}


async def test_who_is_still_sending_when_the_door_closes_has_the_answer(full: Full) -> None:
    caller, idle = await full.connect(), await full.connect()
    caller.send(head(f"Content-Length: {len(BODY)}"))
    await full.counted()
    closing = asyncio.create_task(full.lifecycle.stop())
    assert await idle.at_end(), "the door has closed"
    caller.send(BODY)
    answer = await caller.answer()
    assert (answer.status, answer.headers["connection"]) == (429, "close")
    assert await caller.at_end()
    full.release.set()
    await closing
