"""A server on a loop and a thread of its own, as in production, and callers on plain sockets, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import uvloop
from edge_harness import wait_until
from ports import free_port
from predictor_harness import make

from serve.core import Batch
from serve.edges.connection_guard import ConnectionGuard
from serve.edges.guarded_protocol import GuardedProtocol
from serve.edges.uvicorn_server import EmbeddedServer
from serve.engine.fake import FakeEngine
from serve.replica.lifecycle import ReplicaLifecycle
from serve.replica.predictor import Predictor

BODY = json.dumps({"records": [{"amount": 3.0}]}).encode()
PREDICT = "/v1/models/fraud/predict"
TIMEOUT_S = 20.0

_T = TypeVar("_T")


def head(*headers: str, method: str = "POST", path: str = PREDICT, version: str = "1.1") -> bytes:
    """A request line and headers, to their end."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: test", *headers, "", ""]).encode()


def get(path: str = "/v2/health/live", *headers: str) -> bytes:
    """A whole request."""
    return head(*headers, method="GET", path=path)


def predict(*headers: str, body: bytes = BODY) -> bytes:
    """A whole request for one prediction."""
    return head(f"Content-Length: {len(body)}", *headers) + body


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        problem: dict[str, Any] = json.loads(self.body)
        assert problem["request_id"] == self.headers["x-request-id"]
        assert problem["status"] == self.status
        return problem

    @property
    def code(self) -> str:
        return str(self.problem["code"])


class Caller:
    """One connection. Each read waits for `TIMEOUT_S` at most."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def close_writing(self) -> Self:
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def answer(self, method: str = "GET") -> Answer:
        """The next answer; AssertionError where the connection ends before it."""
        self._read_until(lambda: b"\r\n\r\n" in self._received)
        start, _, self._received = self._received.partition(b"\r\n\r\n")
        lines = start.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        length = 0 if method == "HEAD" or "content-length" not in headers else int(headers["content-length"])
        self._read_until(lambda: len(self._received) >= length)
        body, self._received = self._received[:length], self._received[length:]
        return Answer(int(lines[0].split()[1]), headers, body)

    def _read_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            chunk = self.socket.recv(65536)
            assert chunk, f"the connection ended after {self._received!r}"
            self._received += chunk

    def is_at_end(self) -> bool:
        """Whether the server ends the connection, without another byte."""
        return not self._received and self.socket.recv(1) == b""

    def close(self) -> None:
        self.socket.close()


class Guarded:
    """A replica behind one server."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.port = predictor, free_port()
        self.server = EmbeddedServer.at(predictor, "127.0.0.1", self.port)
        self.lifecycle = ReplicaLifecycle(predictor, [self.server])
        self.callers: list[Caller] = []
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._thread = ThreadPoolExecutor(1)
        self.loop = self._thread.submit(self._runner.get_loop).result()
        self._running = self._thread.submit(self.loop.run_forever)
        self.run(self.lifecycle.start())

    def run(self, work: Any) -> Any:
        """The result of a coroutine, on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def call(self, function: Callable[[], _T]) -> _T:
        """The result of a function, on the server's loop."""

        async def call() -> _T:
            return function()

        return self.run(call())  # type: ignore[no-any-return]

    @property
    def guard(self) -> ConnectionGuard:
        assert self.server._guard is not None
        return self.server._guard

    def pass_time(self, seconds: float) -> None:
        """On the guard's clock."""
        self.call(lambda: self.guard.sweep(seconds))

    def connections(self) -> list[GuardedProtocol]:
        assert self.server._server is not None
        return list(self.server._server.server_state.connections)  # type: ignore[arg-type]

    def wait_for(self, condition: Callable[[GuardedProtocol], bool]) -> None:
        """Until the one connection is as described."""
        wait_until(lambda: self.call(lambda: all(map(condition, self.connections()))), TIMEOUT_S)

    def connect(self) -> Caller:
        self.callers.append(Caller(self.port))
        return self.callers[-1]

    def metric(self, name: str) -> float:
        """The value of one series; 0 where there is none."""
        text = self.call(self.predictor.telemetry.prometheus.render).decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    def close(self) -> None:
        for caller in self.callers:
            caller.close()
        self.run(self.lifecycle.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._running.result(60)
        self._thread.submit(self._runner.close).result(60)
        self._thread.shutdown()


@dataclass
class Gate:
    """Holds the engine's batches from `shut` to `open`; `entered` is set once one is held."""

    is_shut: bool = False

    def __post_init__(self) -> None:
        self.entered, self._release = threading.Event(), threading.Event()

    def __call__(self, _: Batch) -> None:
        if self.is_shut:
            self.entered.set()
            assert self._release.wait(60)

    def shut(self) -> None:
        self.is_shut = True

    def open(self) -> None:
        self.is_shut = False
        self._release.set()


LONG_S = 1_000.0
"""A time limit that only `pass_time` reaches."""


@contextlib.contextmanager
def serving(gate: Gate | None = None, **api: float) -> Iterator[Guarded]:
    """A running server with these settings of the group `api`."""
    limits = dict.fromkeys(("header_timeout_s", "body_timeout_s", "keep_alive_s"), LONG_S)
    server = Guarded(make(FakeEngine(gate=gate or Gate()), api={**limits, **api}))
    try:
        yield server
    finally:
        if gate is not None:
            gate.open()
        server.close()
