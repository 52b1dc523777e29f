"""`Fronts`: starts the front processes of a replica, replaces those that end, and stops them. A `lifecycle.Listener`.

Theory of operation
-------------------
Each front is a fresh interpreter with three inherited files: its end of a socket pair, a listening socket of its own,
and the admission board. All these sockets share one address (SO_REUSEPORT), and the kernel spreads new connections over
those that listen. The core keeps the first socket bound and does not listen on it, so that nobody else takes the port
while a front is replaced. A second server, which binds as the first did, is refused.

A front that ends is replaced at once. One that ended before it listened is tried again after a pause, which doubles.
After `_MAX_FAILURES` such ends in a row the listener counts as ended, and the replica stops.

What is always true: a front ends when its connection to the core does. So no front outlives the core, and `abort` need
not signal anybody who still listens to it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from serve.api import create_app
from serve.core.errors import StartupError
from serve.edges.fronts.admission_board import Board
from serve.edges.fronts.channel import Channel
from serve.edges.fronts.core_side import FrontLink
from serve.edges.fronts.forwarding import Answering
from serve.edges.fronts.messages import Close, Start, describe_model
from serve.edges.sockets import bind
from serve.replica.predictor import Predictor

_FRONT = ("-m", "serve.edges.fronts.front")
_MAX_FAILURES = 5
_FIRST_PAUSE_S = 0.1
_END_TIMEOUT_S = 5.0
"""How long a front may take to end, once nothing holds it, before it is killed."""

_log = logging.getLogger(__name__)


class Fronts:
    """See the head of the file. Lives once: `open`, then `close`. `Predictor.start` comes first."""

    def __init__(
        self,
        predictor: Predictor,
        take_socket: Callable[[], socket.socket],
        num_fronts: int,
        program: Sequence[str] = _FRONT,
    ) -> None:
        """`take_socket` gives the bound socket when the fronts open, or raises StartupError.

        `program` is what Python runs as a front; tests name their own.
        """
        self._predictor = predictor
        self._take_socket = take_socket
        self._num_fronts = num_fronts
        self._program = tuple(program)
        self._socket: socket.socket | None = None
        self._board: Board | None = None
        self._answering: Answering | None = None
        self._start: Start | None = None
        self._links: dict[int, FrontLink] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._has_given_up = False

    @property
    def is_open(self) -> bool:
        """The fronts accept connections, or are about to again."""
        return bool(self._keepers) and not self._is_closing and not self._has_given_up

    @property
    def num_connections(self) -> int:
        """Connections of callers, as the fronts last reported."""
        return sum(link.num_connections for link in self._links.values())

    @property
    def pids(self) -> list[int]:
        """The fronts' process ids, in the order of their places."""
        return [self._processes[place].pid for place in sorted(self._processes)]

    async def open(self) -> None:
        """Start the fronts and wait until all listen. Raises StartupError."""
        predictor = self._predictor
        models = predictor.models()
        self._socket = self._take_socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._board = Board(predictor.load, [model.fitted for model in models])
        self._answering = Answering(create_app(predictor, answers_request_id=False))
        settings = predictor.settings
        share = math.ceil(settings.api.max_connections / self._num_fronts)
        api = settings.api.model_copy(update={"max_connections": share})
        of_each = settings.model_copy(update={"api": api}).model_dump_json()
        self._start = Start(of_each, predictor.device, [describe_model(model) for model in models])
        predictor.recorder.watch_connections(lambda: self.num_connections)
        begun = await asyncio.gather(*map(self._begin, range(self._num_fronts)), return_exceptions=True)
        if faults := [fault for fault in begun if isinstance(fault, BaseException)]:
            raise faults[0]
        self._keepers = [
            asyncio.create_task(self._keep(place), name=f"front-{place}") for place in range(self._num_fronts)
        ]
        if not all(link.is_listening.is_set() for link in self._links.values()):
            raise StartupError("a front process ended before it listened; the log says why")

    async def close(self) -> None:
        """Accept no more connections, close the idle ones, and each busy one after its answer."""
        self._is_closing = True
        for link in self._links.values():
            link.send(Close())
        await asyncio.gather(*(link.has_closed.wait() for link in self._links.values()))

    async def wait_empty(self) -> None:
        """Wait for the last front to end, which it does after its last connection."""
        if self._keepers:
            await asyncio.wait(self._keepers)

    async def abort(self) -> None:
        """Hang up on the fronts that are left, which cuts their connections."""
        self._is_closing = True
        for link in self._links.values():
            link.abort()
        await asyncio.gather(*(link.is_lost.wait() for link in self._links.values()))
        await self.wait_empty()
        await asyncio.gather(*(asyncio.to_thread(_end, process) for process in self._processes.values()))
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _begin(self, place: int) -> None:
        """Start one front, and wait until it listens or is gone."""
        assert self._socket is not None
        assert self._board is not None
        assert self._answering is not None
        assert self._start is not None
        predictor = self._predictor
        link = FrontLink(predictor, predictor.models(), self._board, self._answering, f"front-{place}")
        here, there = socket.socketpair()
        with there, bind(*self._socket.getsockname()[:2], shared=True) as listening:
            fds = (there.fileno(), listening.fileno(), self._board.fd)
            process = self._spawn(fds)
        link.attach(await Channel.over(here, link, reads_always=False))
        self._links[place], self._processes[place] = link, process
        link.send(self._start)
        if self._is_closing:  # which began meanwhile
            link.send(Close())
        await _first_of(link.is_listening, link.is_lost)

    def _spawn(self, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        """Start the process of a front, which inherits these files."""
        level = logging.getLevelName(logging.root.level)
        command = [sys.executable, *self._program, *map(str, fds), level]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds)

    async def _keep(self, place: int) -> None:
        """Replace the front of this place whenever it ends, until the close."""
        num_failures = 0
        while num_failures < _MAX_FAILURES:
            link, process = self._links[place], self._processes[place]
            await link.is_lost.wait()
            await asyncio.to_thread(_end, process)
            if self._is_closing:
                return
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            _log.error("front process %d ended (%s); its connections are lost, and it is replaced", process.pid, how)
            if num_failures:
                await asyncio.sleep(_FIRST_PAUSE_S * 2**num_failures)
            num_failures = 0 if await self._has_begun(place) else num_failures + 1
        _log.critical("front processes do not start any more, so the replica stops")
        self._has_given_up = True

    async def _has_begun(self, place: int) -> bool:
        """Start another front; False where it did not come to listen."""
        try:
            await self._begin(place)
        except (StartupError, OSError) as error:
            _log.error("a front process cannot be started: %s", error)
            return False
        return self._links[place].is_listening.is_set()


async def _first_of(one: asyncio.Event, other: asyncio.Event) -> None:
    """Wait until one of two events is set."""
    waiting = [asyncio.create_task(event.wait()) for event in (one, other)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that has hung up; kill it where it does not end."""
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
