"""The deadlines of waiting requests, earliest first: a heap whose entries may be of requests that have left since."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Generic

from serve.batching.fifo import R

_FEW = 64


class Deadlines(Generic[R]):
    """Each request once, until its deadline; whether it still waits is asked of `waits`.

    A request that leaves early costs nothing then: its entry is dropped when it comes to the top, and all such entries
    are once they are three in four, so that they neither pile up nor keep their requests' rows alive for long.
    """

    def __init__(self, waits: Callable[[R], bool]) -> None:
        self._waits = waits
        self._heap: list[tuple[float, int, R]] = []
        self._num_added = 0

    def add(self, request: R, num_waiting: int) -> None:
        """`num_waiting`: how many requests wait now, so that stale entries can be counted."""
        if request.deadline == math.inf:
            return
        self._num_added += 1  # decides between equal deadlines, since requests have no order
        heapq.heappush(self._heap, (request.deadline, self._num_added, request))
        if len(self._heap) > _FEW + 4 * num_waiting:
            self._heap = [entry for entry in self._heap if self._waits(entry[2])]
            heapq.heapify(self._heap)

    def earliest(self) -> float | None:
        """The earliest deadline of those who wait; None if none has one."""
        while self._heap and not self._waits(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> list[R]:
        """Those who wait and whose deadline is `now` or earlier."""
        passed: list[R] = []
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if self._waits(request):
                passed.append(request)
        return passed
