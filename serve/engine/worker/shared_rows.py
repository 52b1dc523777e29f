"""The rows of large batches, in memory that a replica and its worker both map: one slot for each batch in flight.

The replica writes a batch's rows into a slot and names the slot in its call. The worker computes on them in place. The
slot is written again once the answer to that call has arrived. Smaller matrices, and all answers, cross in frames.

256 rows of 100 features take 59 us through the socket and 36 us here, 4,096 take 0.66 ms and 0.16 ms, and 32,768 take
6.8 ms and 3.0 ms (two cores, there and back, an answer of two numbers a row).

Trust. The replica only writes here, so nothing that a hostile worker writes reaches it. A file that shrinks would end
the process that writes to it; seals forbid that. Memory is taken as it is written to, and not from /dev/shm.
"""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np

from serve.core import Matrix
from serve.engine.worker.messages import MAX_IN_FLIGHT, Shape

MIN_BYTES = 2**16
"""Below this the socket takes at most 15 us longer."""
SLOT_BYTES = 2**26
"""Most that a slot holds: 32,768 rows of 256 features. A larger matrix crosses in its frame."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedRows:
    """The slots, mapped into this process.

    Args:
        fd: of a file made by `make_file`. It may be closed afterwards.
    """

    def __init__(self, fd: int) -> None:
        self._slots = np.frombuffer(mmap.mmap(fd, MAX_IN_FLIGHT * SLOT_BYTES), np.float64).reshape(MAX_IN_FLIGHT, -1)

    @staticmethod
    def make_file() -> int:
        """A new file for both processes, which has no name and does not change its size; its descriptor."""
        fd = os.memfd_create("tabpfn-serve-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, MAX_IN_FLIGHT * SLOT_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fd

    def slot(self, number: int, shape: Shape) -> Matrix:
        """A slot as a matrix of this shape, float64; it is the memory itself. Raises ValueError if it is larger."""
        num_rows, num_columns = shape
        return self._slots[number, : num_rows * num_columns].reshape(shape)
