"""What to try after a batch failed: smaller parts of it, until only the culprit is left.

A fault of the device is of one request until shown otherwise: the batch is bisected by requests, and who is alone when
it fails was the culprit. Where memory ran out it is the number of rows: the batch is halved by rows, through a request
if need be. Three things are not tried again: an answer with the wrong number of rows, since then nobody can be told
which answer is whose and the engine must be taken for broken; a device that is lost; and a single row or request that
failed alone.

`n` requests of which one is the culprit cost about `2 * log2(n)` further calls, most of them small.
"""

from __future__ import annotations

from collections.abc import Sequence

from serve.batching.fifo import R, Slice
from serve.core.errors import DeviceLost, OutOfMemory


class WrongAnswer(Exception):
    """The engine answered another number of rows or outputs than it was asked."""


def smaller_parts(slices: Sequence[Slice[R]], error: BaseException) -> list[list[Slice[R]]]:
    """The two parts in which a failed batch is to be tried again, in order; none if `error` is its outcome."""
    if isinstance(error, WrongAnswer | DeviceLost):
        return []
    if isinstance(error, OutOfMemory):
        return _halve_rows(slices)
    middle = len(slices) // 2
    return [list(slices[:middle]), list(slices[middle:])] if middle else []


def num_rows_of(slices: Sequence[Slice[R]]) -> int:
    return sum(stop - start for _, start, stop in slices)


def _halve_rows(slices: Sequence[Slice[R]]) -> list[list[Slice[R]]]:
    room = num_rows_of(slices) // 2
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
