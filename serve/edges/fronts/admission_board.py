"""The state of admission in memory that the core writes and every front reads: a front refuses early without asking.

Theory of operation
-------------------
The board holds one copy of the batcher's state (`batching/snapshot.py`). The core writes it before it sends outcomes,
every `PERIOD_S` while requests are ongoing, and once more when none is. So a front never waits for the core, and what
it reads is at most one period old, as long as the core's event loop turns. An older board only moves refusals: a
request that a front lets through is checked again by the core.

A reader may meet a copy that is half written. The sum of its bytes (CRC-32) tells, on processors of every memory order,
and the reader keeps the copy that it has.

    offset  size  content
    0       8     number of the copy, from 1
    8       8     CRC-32 of number and copy
    16      8 n   the numbers of the copy: float64
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Sequence

from serve.batching.snapshot import Load, count_numbers
from serve.core import FittedContext

PERIOD_S = 0.005

_NUMBER, _SUM = struct.Struct("<Q"), struct.Struct("<QQ")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_TRIES = 8


def _size(num_numbers: int) -> int:
    return _SUM.size + 8 * num_numbers


def _checksum(number: int, copy: bytes) -> int:
    return zlib.crc32(copy, zlib.crc32(_NUMBER.pack(number)))


class Board:
    """The core's side. Lives on the event loop of the batcher."""

    def __init__(self, load: Load, contexts: Sequence[FittedContext]) -> None:
        """Make the memory and write the state of now. `fd` is its file, which fronts inherit."""
        self._load = load
        self._contexts = tuple(contexts)
        self._form = struct.Struct(f"<{count_numbers(len(contexts))}d")
        size = _size(count_numbers(len(contexts)))
        self.fd = os.memfd_create("tabpfn-serve-admission", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self._memory = mmap.mmap(self.fd, size)
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self.write()

    def touch(self) -> None:
        """The state has changed: it is written within a period, and until nothing is ongoing."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._tick)

    def write(self) -> None:
        """Write the state of now."""
        self._number += 1
        copy = self._form.pack(*self._load.numbers(self._contexts))
        self._memory[:] = _SUM.pack(self._number, _checksum(self._number, copy)) + copy

    def close(self) -> None:
        """Write no more."""
        if self._timer is not None:
            self._timer.cancel()
        os.close(self.fd)
        self._memory.close()

    def _tick(self) -> None:
        self._timer = None
        is_idle = self._load.is_idle
        self.write()
        if not is_idle:
            self.touch()


class BoardReader:
    """A front's side."""

    def __init__(self, fd: int, num_contexts: int) -> None:
        """Map the board in the file `fd`, which may be closed afterwards."""
        self._form = struct.Struct(f"<{count_numbers(num_contexts)}d")
        self._memory = mmap.mmap(fd, _size(count_numbers(num_contexts)), prot=mmap.PROT_READ)
        self._number = 0

    def changed(self) -> tuple[float, ...] | None:
        """The newest copy; None where it was read before, or is being written."""
        for _ in range(_TRIES):
            if _NUMBER.unpack_from(self._memory)[0] == self._number:
                return None
            data = self._memory[:]
            number, checksum = _SUM.unpack_from(data)
            copy = data[_SUM.size :]
            if _checksum(number, copy) == checksum:
                self._number = number
                return self._form.unpack(copy)
        return None
