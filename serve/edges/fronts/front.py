"""A front process: reads requests, refuses and encodes them, and renders what the core answers.

`python -m serve.edges.fronts.front CHANNEL_FD SOCKET_FD BOARD_FD LOG_LEVEL`, with its end of the connection to the
core, a bound socket, and the file of the admission board.

It ends with the core: when the connection closes, for whatever reason, and at once. It ignores SIGTERM and SIGINT,
because a terminal and some supervisors signal the whole group, and the core says in which order a replica stops. It
imports neither torch nor tabpfn nor ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import uvloop

from serve.api.front_app import FrontApp
from serve.edges.fronts.channel import Channel
from serve.edges.fronts.forwarding import Forwarder
from serve.edges.fronts.frames import Kind, MalformedFrame
from serve.edges.fronts.messages import (
    FROM_CORE,
    Close,
    Closed,
    Failures,
    Forward,
    Forwarded,
    Listening,
    Start,
    message_frame,
    read_message,
)
from serve.edges.fronts.remote_replica import RemoteReplica
from serve.edges.http_server import HttpServer
from serve.replica import garbage
from serve.telemetry.event_loop import observe_lag
from serve.telemetry.launcher_log import write_to_launcher

_CORE_GONE = 1


@dataclass(frozen=True, slots=True)
class Files:
    """What the process inherits: open files, by their numbers."""

    channel: int
    listening_socket: int
    board: int


class Front:
    """The process's part on the event loop. A `channel.Peer`.

    Args:
        end: ends the process at once, with a status.

    Attributes:
        server: that of this front, once it is told what to serve.
    """

    def __init__(self, files: Files, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._files = files
        self._started: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
        self._close_asked = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._is_ending = False
        self._replica: RemoteReplica | None = None
        self.server: HttpServer | None = None
        self._forwarder: Forwarder | None = None

    async def serve(self) -> None:
        """Serve until the core asks for the end, and every connection has ended."""
        channel = await Channel.over(socket.socket(fileno=self._files.channel), self, reads_always=True)
        start = await self._started
        replica = self._replica = RemoteReplica(start, channel, self._files.board)
        os.close(self._files.board)

        def forward(message: Forward) -> None:
            replica.recorder.flush()  # so that the counts which the caller expects are there
            channel.send(message_frame(message))

        forwarder = self._forwarder = Forwarder(forward)
        server = self.server = HttpServer(
            lambda: FrontApp(replica, forwarder),
            replica.settings.api,
            replica.recorder,
            lambda: socket.socket(fileno=self._files.listening_socket),
        )
        await server.open()
        garbage.leave_alone()
        lag = asyncio.create_task(observe_lag(replica.recorder.loop_lagged), name="event-loop-lag")
        channel.send(message_frame(Listening()))
        await self._close_asked.wait()
        await server.close()
        channel.send(message_frame(Closed()))
        await server.wait_empty()
        lag.cancel()
        replica.large_requests.close()
        replica.recorder.flush()
        self._is_ending = True
        channel.close()
        await self._has_ended.wait()

    def receive(self, kind: int, payload: memoryview) -> None:
        """One frame of the core. Raises MalformedFrame."""
        replica = self._replica
        if replica is not None and kind == Kind.ANSWERS:
            replica.answered(payload)
            return
        if kind != Kind.MESSAGE:
            raise MalformedFrame(f"the core sends no frames of kind {kind}")
        message = read_message(FROM_CORE, payload)
        if isinstance(message, Start):
            self._started.set_result(message)
        elif isinstance(message, Close):
            self._close_asked.set()
        elif replica is not None and isinstance(message, Failures):
            replica.failed(message)
        elif self._forwarder is not None and isinstance(message, Forwarded):
            self._forwarder.settle(message)

    def lost(self) -> None:
        """The core is gone, or this process has ended the connection."""
        if not self._is_ending:
            self._end(_CORE_GONE)
        self._has_ended.set()


def main() -> None:
    """Serve until the core ends, or asks for the end."""
    channel, listening_socket, board = map(int, sys.argv[1:4])
    logging.basicConfig(level=sys.argv[4], format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    write_to_launcher(os.environ)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    files = Files(channel, listening_socket, board)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(files))


async def _serve(files: Files) -> None:
    await Front(files).serve()


if __name__ == "__main__":
    main()
