"""The ASGI app under uvicorn: in a process of its own (`tabpfn-serve up`), or inside a Ray replica (`EmbeddedServer`).

Theory of operation
-------------------
The port is bound before the models are loaded, so that a busy port is found at once, but nobody listens on it until
every model has passed its checks: a caller is refused by the kernel, never kept waiting by it.

SIGTERM or SIGINT ends the server in this order:

1. Close the door: no new connection, idle ones are closed, busy ones are closed after their answer (uvicorn).
2. Requests that are inside are served as ever, for `GRACE_S`. Nearly always all are answered by then.
3. Drain: a request that is still only arriving gets 503, whatever was admitted is answered, for at most
   `drain_timeout_s`; what then remains is failed with 503 too, so that even that caller gets its outcome.
4. Close the engine; exit with 0.

A second SIGINT skips the waiting. A stop that is asked for before the server was ready ends it at once.

An `EmbeddedServer` is the same server on a loop that its owner runs. The owner has the signals and asks for the end:
steps 1 to 4 are its `close`. Its port may be shared, so that the next replica listens before the old one leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
import uvloop

from serve.api import App, create_app
from serve.core.errors import DeviceLost, StartupError
from serve.edges.early_refusal_protocol import EarlyRefusalProtocol
from serve.edges.sockets import bind
from serve.replica.factory import assemble
from serve.replica.predictor import Predictor
from serve.settings import ServerSettings

GRACE_S = 1.0
"""How long requests already inside may still be admitted after the door closed."""

_LAST_BYTES_S = 5
"""After the drain: for callers who read slowly."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(settings: ServerSettings, sock: socket.socket, on_ready: Callable[[Predictor], None]) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT. `on_ready` is called when it serves.

    Raises:
        StartupError: it never served.
        DeviceLost: it served until its engine's process ended, or its batching task did. Whoever started it is the
            one to start it again.
    """
    predictor = assemble(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(predictor, sock, on_ready))


async def _serve(predictor: Predictor, sock: socket.socket, on_ready: Callable[[Predictor], None]) -> None:
    app = create_app(predictor)
    # The lifespan is entered here and not by uvicorn, so that an error of the start comes out as itself.
    async with contextlib.AsyncExitStack() as life:
        with _stop_requests() as stop:
            starting = asyncio.ensure_future(life.enter_async_context(app.router.lifespan_context(app)))
            asked = asyncio.ensure_future(stop.wait())
            await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if stop.is_set():
                os._exit(0)  # nobody was let in, and a model being fitted cannot be interrupted otherwise
            await starting
            server = _Server(_config(app, predictor.settings), predictor, on_ready)
            await server.serve(sockets=[sock])
            if server.has_lost_engine:
                raise DeviceLost("the engine is gone and nothing could be answered any more; the log says why")


def _config(app: App, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http=cast(Any, functools.partial(EarlyRefusalProtocol, refuse=app.refuse_early)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks for the caller's address
        timeout_keep_alive=math.ceil(settings.api.keep_alive_s),
        timeout_graceful_shutdown=math.ceil(GRACE_S + settings.api.drain_timeout_s) + _LAST_BYTES_S,
    )


@contextlib.contextmanager
def _stop_requests() -> Iterator[asyncio.Event]:
    """An event that is set by SIGTERM or SIGINT. While uvicorn serves it has the signals, and gives them back."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in _STOP_SIGNALS:
        loop.add_signal_handler(signum, stop.set)
    try:
        yield stop
    finally:
        for signum in _STOP_SIGNALS:
            loop.remove_signal_handler(signum)


class _Server(uvicorn.Server):
    """uvicorn's server with our steps 2 and 3 in its shutdown."""

    def __init__(self, config: uvicorn.Config, predictor: Predictor, on_ready: Callable[[Predictor], None]) -> None:
        super().__init__(config)
        self._predictor = predictor
        self._on_ready = on_ready
        self.has_lost_engine = False
        """That is why it ended."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready(self._predictor)

    async def on_tick(self, counter: int) -> bool:
        # Nothing would be answered, and to be closed is clearer to callers and supervisors than to be never ready.
        self.has_lost_engine = self._predictor.is_lost
        return self.has_lost_engine or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        all_left = asyncio.Event()
        draining = asyncio.create_task(self._drain(all_left))
        try:
            await super().shutdown(sockets)
        finally:
            all_left.set()
            await draining

    async def _drain(self, all_left: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await all_left.wait()
        if not self.force_exit:
            await self._predictor.drain()
        await self._predictor.close()


class EmbeddedServer:
    """The server of one started predictor, on the running loop. Lives once: `open`, then `close`."""

    def __init__(self, predictor: Predictor, host: str, port: int) -> None:
        self._predictor = predictor
        self._address = (host, port)
        self._server: _Embedded | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._serving is not None and not self._serving.done()

    async def open(self) -> None:
        """Listen. Raises StartupError where the address cannot be had."""
        app = create_app(self._predictor)  # its lifespan is not entered: whoever started the predictor has its own
        is_listening = asyncio.Event()
        server = _Embedded(_config(app, self._predictor.settings), self._predictor, lambda _: is_listening.set())
        self._server = server
        self._serving = asyncio.create_task(server.serve(sockets=[bind(*self._address, shared=True)]), name="door")
        listening = asyncio.ensure_future(is_listening.wait())
        await asyncio.wait((self._serving, listening), return_when=asyncio.FIRST_COMPLETED)
        if not is_listening.is_set():
            listening.cancel()
            raise StartupError("the server ended before it listened")

    async def close(self) -> None:
        """Steps 1 to 4; waits for them where they have begun."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.shield(self._serving)


class _Embedded(_Server):
    """Leaves the signals to whose process it is."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
