"""uvicorn as a listener of a replica, and `tabpfn-serve up`: one replica behind it, in this process.

Theory of operation
-------------------
`up` binds its port before the models are loaded, so that a busy port is found at once. The kernel refuses connections
to a port that is only bound: no caller waits while the models load. The listening begins when every model is ready.
The signals and the order of the stop are those of `replica/lifecycle.py`.

`EmbeddedServer` is uvicorn's server as a task on the loop of its owner. It leaves signals alone. Its port may be
shared, so that the next replica listens before the old one leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
import uvloop

from serve.api import App, create_app
from serve.core.errors import StartupError
from serve.edges.connection_guard import ConnectionGuard
from serve.edges.fast_path_protocol import FastPathProtocol
from serve.edges.sockets import bind, permit_open_files
from serve.replica.factory import assemble
from serve.replica.lifecycle import GRACE_S, StoppedBeforeReady, lifecycle_of
from serve.replica.predictor import Predictor
from serve.settings import ServerSettings

_OTHER_FILES = 256
"""Open files that are no connections: models, the worker, logs, callers that are told of the limit."""

_log = logging.getLogger(__name__)


def run(settings: ServerSettings, sock: socket.socket, on_ready: Callable[[Predictor], None]) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT. `on_ready` is called, on a thread of its own, when it serves.

    Raises:
        StartupError: it never served.
        DeviceLost: it served until its engine's process ended, or its batching task did. A supervisor has to start it
            again.
    """
    predictor = assemble(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(predictor, sock, functools.partial(on_ready, predictor)))


async def _serve(predictor: Predictor, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    server = EmbeddedServer(predictor, lambda: sock)
    lifecycle = lifecycle_of(predictor, [server], lame_duck_s=predictor.settings.api.lame_duck_s)
    try:
        await lifecycle.run(on_ready)
    except StoppedBeforeReady:
        os._exit(0)  # no request was let in, and a model that is being fitted cannot be interrupted otherwise


class EmbeddedServer:
    """uvicorn's server of one replica, on the running loop (a `Listener`). Lives once: `open`, then `close`."""

    def __init__(self, predictor: Predictor, take_socket: Callable[[], socket.socket]) -> None:
        """`take_socket` gives the bound socket when the server opens, or raises StartupError."""
        self._predictor = predictor
        self._take_socket = take_socket
        self._server: _Server | None = None
        self._guard: ConnectionGuard | None = None
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    def at(cls, predictor: Predictor, host: str, port: int) -> EmbeddedServer:
        """A server that shares its port with other processes of the same user."""
        return cls(predictor, functools.partial(bind, host, port, shared=True))

    @property
    def is_open(self) -> bool:
        """It accepts connections."""
        server = self._server
        return server is not None and server.is_listening.is_set() and not server.has_closed.is_set()

    @property
    def num_connections(self) -> int:
        """Connections of callers, idle ones included."""
        return 0 if self._server is None else len(self._server.server_state.connections)

    async def open(self) -> None:
        """Listen. Raises StartupError where the address cannot be had."""
        app = create_app(self._predictor)  # its lifespan is not entered: the lifecycle above starts and stops
        guard = _guard(app, self._predictor)
        server = _Server(_config(app, guard))
        guard.watch(cast(Any, server.server_state.connections))
        self._serving = asyncio.create_task(server.serve(sockets=[self._take_socket()]), name="uvicorn")
        sweeping = asyncio.create_task(guard.sweep_forever(), name="connection-guard")
        self._serving.add_done_callback(lambda _: sweeping.cancel())
        self._server, self._guard = server, guard
        if not await _is_first(server.is_listening, self._serving):
            raise StartupError("the HTTP server ended before it listened") from self._serving.exception()

    async def close(self) -> None:
        """Accept no more connections, close the idle ones, and each busy one after its answer.

        A request that has not arrived in full within the lifecycle's grace is refused with `draining`.
        """
        if self._server is not None and self._serving is not None and self._guard is not None:
            self._server.should_exit = True
            if not self._guard.is_stopping:
                self._guard.is_stopping = True
                asyncio.get_running_loop().call_later(GRACE_S, self._guard.end_uploads)
            await _is_first(self._server.has_closed, self._serving)

    async def wait_empty(self) -> None:
        """Wait for the last connection to end."""
        if self._serving is not None:
            await asyncio.wait({self._serving})

    async def abort(self) -> None:
        """Cut the connections that are left."""
        if self._server is not None:
            self._server.force_exit = True
            for connection in list(self._server.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()
        await self.wait_empty()


async def _is_first(event: asyncio.Event, task: asyncio.Task[None]) -> bool:
    """Whether the event was set before the task ended; waits for one of the two."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return event.is_set()


class _Server(uvicorn.Server):
    """Says when it listens and when it has closed, and leaves the signals to its owner."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()
        self.has_closed = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.has_closed.set()  # its waiter runs at the first await below, and uvicorn closes its sockets before that
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _guard(app: App, predictor: Predictor) -> ConnectionGuard:
    settings = predictor.settings.api
    permitted = max(1, permit_open_files() - _OTHER_FILES)
    if permitted < settings.max_connections:
        _log.warning(
            "api.max_connections is %d, and the system permits %d (`ulimit -Hn`): that is the limit now",
            settings.max_connections,
            permitted,
        )
    limit = min(permitted, settings.max_connections)
    return ConnectionGuard(settings, predictor.recorder, app.render_unrouted, max_connections=limit)


def _config(app: App, guard: ConnectionGuard) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http=cast(Any, functools.partial(FastPathProtocol, fast_path=app.fast_path, guard=guard)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the address of the caller is used nowhere
        timeout_graceful_shutdown=None,  # the lifecycle has the time, and cuts what is left
    )
