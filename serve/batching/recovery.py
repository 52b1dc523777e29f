"""What is tried again after a batch failed.

Theory of operation
-------------------
After a failure the batch is tried again in smaller parts (`smaller_parts`) until only the culprit fails. The batch is
bisected by requests: a request that fails alone is the culprit. Where memory ran out the number of rows is at fault, so
the batch is halved by rows, through a request if need be. `n` requests with one culprit cost about `2 * log2(n)` more
calls, most of them small. Three failures are final: an answer with the wrong number of rows, since then no row has a
known answer and the engine is broken; a lost device; and a request or row that failed alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from serve.batching.fifo import R, Slice, count_rows
from serve.core.errors import DeviceLost, OutOfMemory


class WrongAnswer(Exception):
    """The engine answered with another number of rows or outputs than the batch asks for."""


def smaller_parts(slices: Sequence[Slice[R]], error: BaseException) -> list[Sequence[Slice[R]]]:
    """The two parts in which a failed batch is tried again, in order; none if `error` is final."""
    if isinstance(error, WrongAnswer | DeviceLost):
        return []
    if isinstance(error, OutOfMemory):
        return _halve_rows(slices)
    middle = len(slices) // 2
    return [list(slices[:middle]), list(slices[middle:])] if middle else []


def _halve_rows(slices: Sequence[Slice[R]]) -> list[Sequence[Slice[R]]]:
    room = count_rows(slices) // 2
    if not room:
        return []
    first: list[Slice[R]] = []
    second: list[Slice[R]] = []
    for request, start, stop in slices:
        middle = min(stop, start + room)
        if middle > start:
            first.append(Slice(request, start, middle))
        if middle < stop:
            second.append(Slice(request, middle, stop))
        room -= middle - start
    return [first, second]
