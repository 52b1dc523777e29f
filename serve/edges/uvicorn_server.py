"""uvicorn as a listener of a replica, and `tabpfn-serve up`: one replica behind it, in this process.

Theory of operation
-------------------
`up` binds its port before the models are loaded, so that a busy port is found at once. The kernel refuses connections
to a port that is only bound: no caller waits while the models load. The listening begins when every model is ready.
The signals and the order of the stop are those of `replica/lifecycle.py`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Callable

import uvloop

from serve.api import create_app
from serve.edges.fronts.listener import Fronts
from serve.edges.http_server import HttpServer
from serve.edges.sockets import bind
from serve.replica.factory import assemble
from serve.replica.lifecycle import Listener, StoppedBeforeReady, lifecycle_of
from serve.replica.predictor import Predictor
from serve.settings import ServerSettings


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
    listener = listener_of(predictor, lambda: sock)
    lifecycle = lifecycle_of(predictor, [listener], lame_duck_s=predictor.settings.api.lame_duck_s)
    try:
        await lifecycle.run(on_ready)
    except StoppedBeforeReady:
        os._exit(0)  # no request was let in, and a model that is being fitted cannot be interrupted otherwise


def listener_of(predictor: Predictor, take_socket: Callable[[], socket.socket]) -> Listener:
    """What accepts the connections of a replica: a server in this process, or `api.num_fronts` front processes.

    `take_socket` gives the bound socket when the listener opens, or raises StartupError.
    """
    num_fronts = predictor.settings.num_fronts
    if num_fronts == 1:
        return EmbeddedServer(predictor, take_socket)
    return Fronts(predictor, take_socket, num_fronts)


class EmbeddedServer(HttpServer):
    """uvicorn's server of one replica, in the replica's process."""

    def __init__(self, predictor: Predictor, take_socket: Callable[[], socket.socket]) -> None:
        """`take_socket` gives the bound socket when the server opens, or raises StartupError."""
        # The lifespan of the app is not entered: the lifecycle of the replica starts and stops.
        api = predictor.settings.api
        super().__init__(functools.partial(create_app, predictor), api, predictor.recorder, take_socket)

    @classmethod
    def at(cls, predictor: Predictor, host: str, port: int) -> EmbeddedServer:
        """A server that shares its port with other processes of the same user."""
        return cls(predictor, functools.partial(bind, host, port, shared=True))
