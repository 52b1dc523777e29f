"""Front processes whose event loop is that of the test: real sockets, frames and shared memory, without the process.

A process takes a second to start, a front on the test's loop some milliseconds. So the whole suite of the doors runs
over fronts, and `tests/edges/fronts` has the tests that need processes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from unittest import mock

import httpx

from serve.edges.fronts import report
from serve.edges.fronts.front import Files, Front
from serve.edges.fronts.listener import Fronts
from serve.edges.http_server import HttpServer
from serve.edges.sockets import bind
from serve.edges.uvicorn_server import EmbeddedServer
from serve.replica.lifecycle import Listener, ReplicaLifecycle
from serve.replica.predictor import Predictor


class _FrontOnThisLoop:
    """What the listener uses of a process."""

    def __init__(self, fds: Sequence[int]) -> None:
        self.pid = os.getpid()
        self.returncode = 0
        self._has_ended = threading.Event()
        channel, listening_socket, board = map(os.dup, fds)
        front = self.front = Front(Files(channel, listening_socket, board), end=self._end)
        self._task = asyncio.get_running_loop().create_task(front.serve(), name="front")
        self._task.add_done_callback(self._done)

    def _end(self, code: int) -> None:
        self.returncode = code
        self._task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._has_ended.set()
        if not task.cancelled():
            task.result()

    def wait(self, timeout_s: float | None = None) -> None:
        assert self._has_ended.wait(timeout_s or 20)

    def kill(self) -> None:
        raise AssertionError("a front did not end by itself")


class FrontsOnThisLoop(Fronts):
    """See the head of the file."""

    @property
    def servers(self) -> list[HttpServer]:
        """The server of each front."""
        return [process.front.server for process in self._processes.values()]  # type: ignore[attr-defined]

    def _spawn(self, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        return _FrontOnThisLoop(fds)  # type: ignore[return-value]


@asynccontextmanager
async def client_over_sockets(predictor: Predictor, num_fronts: int | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started replica. `num_fronts` is None for a server in the process of the replica.

    Fronts report their counts in the next turn of the event loop, so that a test finds them in `/metrics` at once.
    """
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    listener: Listener
    if num_fronts is None:
        listener = EmbeddedServer(predictor, lambda: sock)
    else:
        listener = FrontsOnThisLoop(predictor, lambda: sock, num_fronts)
    lifecycle = ReplicaLifecycle(predictor, [listener])
    await lifecycle.start()
    try:
        with mock.patch.object(report, "PERIOD_S", 0.0):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client
    finally:
        await lifecycle.stop()
