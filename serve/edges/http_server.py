"""uvicorn's server as a listener: a task on the loop of its owner, for any app of this package.

`HttpServer` leaves signals alone. Its port may be shared, so that the next replica listens before the old one leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.fast_path import FastPath
from serve.core.errors import ServeError, StartupError
from serve.edges.connection_guard import ConnectionGuard
from serve.edges.fast_path_protocol import FastPathProtocol, Outbox
from serve.edges.sockets import permit_open_files
from serve.replica.lifecycle import GRACE_S
from serve.settings import ApiSettings
from serve.telemetry.recorder import Recorder

_OTHER_FILES = 256
"""Open files that are no connections: models, the worker, logs, callers that are told of the limit."""

_log = logging.getLogger(__name__)


class ServedApp(Protocol):
    """An ASGI app with a fast path: `api.App`, or that of a front process."""

    @property
    def fast_path(self) -> FastPath:
        """Asked by the headers of each request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

    def render_unrouted(self, error: ServeError, request_id: str) -> Response:
        """The response to an error that the server found before there was a request for the app."""


class HttpServer:
    """uvicorn's server on the running loop (a `Listener`). Lives once: `open`, then `close`."""

    def __init__(
        self,
        make_app: Callable[[], ServedApp],
        settings: ApiSettings,
        recorder: Recorder,
        take_socket: Callable[[], socket.socket],
    ) -> None:
        """`take_socket` gives the bound socket when the server opens, or raises StartupError."""
        self._make_app = make_app
        self._settings = settings
        self._recorder = recorder
        self._take_socket = take_socket
        self._server: _Server | None = None
        self._guard: ConnectionGuard | None = None
        self._serving: asyncio.Task[None] | None = None

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
        app = self._make_app()
        guard = _guard(app, self._settings, self._recorder)
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


def _guard(app: ServedApp, settings: ApiSettings, recorder: Recorder) -> ConnectionGuard:
    permitted = max(1, permit_open_files() - _OTHER_FILES)
    if permitted < settings.max_connections:
        _log.warning(
            "api.max_connections is %d, and the system permits %d (`ulimit -Hn`): that is the limit now",
            settings.max_connections,
            permitted,
        )
    limit = min(permitted, settings.max_connections)
    return ConnectionGuard(settings, recorder, app.render_unrouted, max_connections=limit)


def _config(app: ServedApp, guard: ConnectionGuard) -> uvicorn.Config:
    return uvicorn.Config(
        cast(Any, app),
        loop="none",
        http=cast(Any, functools.partial(FastPathProtocol, fast_path=app.fast_path, outbox=Outbox(), guard=guard)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the address of the caller is used nowhere
        timeout_graceful_shutdown=None,  # the lifecycle has the time, and cuts what is left
    )
