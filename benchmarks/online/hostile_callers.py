"""Callers that mean no good, in a process of their own: a flood of headers, stalled bodies, idle connections.

Each of them begins again once the server has ended it, so that the attack lasts as long as the measurement. They run at
a low priority: what is measured is what they do to the server, not that they take its processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from benchmarks.online.errors import StartFailed

_HEADER = b"x: " + b"y" * 1021
_PAUSE_S = 0.01
"""Between two attempts of one caller."""
_OTHER_FILES = 200
_READY_S = 120.0
_NICE = 10


@dataclass(frozen=True)
class Attack:
    """How many callers of each kind.

    Attributes:
        floods: connections that send one header after the other.
        stalls: connections that send half of a body of `body_bytes` and then nothing.
        idle: connections that send nothing.
    """

    floods: int = 0
    stalls: int = 0
    idle: int = 0
    body_bytes: int = 8 * 2**20

    def within(self, max_open_files: int) -> Attack:
        """With as many idle connections as the open files of one process allow."""
        room = max(0, max_open_files - _OTHER_FILES - self.floods - self.stalls)
        return Attack(self.floods, self.stalls, min(self.idle, room), self.body_bytes)


def permitted_open_files() -> int:
    """The limit of open files, which is raised as far as the system permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class HostileCallers:
    """`with HostileCallers(host, port, attack) as callers:` they attack once `ready` has returned, until the end."""

    def __init__(self, host: str, port: int, attack: Attack) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, self._theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(host, port, attack, self._theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        return self

    def ready(self) -> int:
        """Wait until every caller has begun; the number of idle connections that are open then. Raises StartFailed."""
        try:
            if self._ours.poll(_READY_S):
                return int(self._ours.recv())
        except EOFError:
            pass
        raise StartFailed(f"the hostile callers ended, or did not begin within {_READY_S:g} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()
        self._ours.close()


def _run(host: str, port: int, attack: Attack, theirs: Connection) -> None:
    os.nice(_NICE)
    permitted_open_files()
    asyncio.run(attack_server(host, port, attack, theirs.send))


async def attack_server(host: str, port: int, attack: Attack, begun: Callable[[int], None]) -> None:
    """Attack until cancelled. `begun` is called once, with the number of open idle connections."""
    idle = [_Idle(host, port) for _ in range(attack.idle)]
    for caller in idle:
        await caller.open()
    tasks = [asyncio.create_task(_flood(host, port)) for _ in range(attack.floods)]
    tasks += [asyncio.create_task(_stall(host, port, attack.body_bytes)) for _ in range(attack.stalls)]
    begun(sum(caller.is_open for caller in idle))
    tasks += [asyncio.create_task(caller.stay()) for caller in idle]
    await asyncio.gather(*tasks)


class _Idle:
    """A connection on which nothing is sent."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def is_open(self) -> bool:
        return self._reader is not None and not self._reader.at_eof()

    async def open(self) -> None:
        with contextlib.suppress(OSError):
            self._reader, self._writer = await asyncio.open_connection(*self._address)

    async def stay(self) -> None:
        """Stay, and come again where the server ends the connection."""
        while True:
            with contextlib.suppress(OSError):
                if self._reader is not None:
                    await self._reader.read()
            if self._writer is not None:
                self._writer.close()
            await asyncio.sleep(1.0)
            await self.open()


async def _flood(host: str, port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET / HTTP/1.1\r\n")
                while not writer.is_closing():
                    writer.write(_HEADER + b"\r\n")
                    await writer.drain()
            finally:
                writer.close()
        await asyncio.sleep(_PAUSE_S)


async def _stall(host: str, port: int, body_bytes: int) -> None:
    head = f"POST /v1/models/fraud/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {body_bytes}\r\n\r\n"
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(head.encode() + b" " * (body_bytes // 2))
                await writer.drain()
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(_PAUSE_S)
