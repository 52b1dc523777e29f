"""The deadlines of waiting requests, earliest first, and the one timer for all of them."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Generic

from serve.batching.fifo import R

_FEW = 64


class Deadlines(Generic[R]):
    """A heap with each request once. `waits` says whether a request is still waiting.

    A request that leaves early costs nothing then. Its entry is dropped when it reaches the top, and all such entries
    are dropped once they are three in four, so that they neither pile up nor keep rows alive for long.
    """

    def __init__(self, waits: Callable[[R], bool]) -> None:
        self._waits = waits
        self._heap: list[tuple[float, int, R]] = []
        self._num_added = 0

    def add(self, request: R, num_waiting: int) -> None:
        """Add a request; `num_waiting` requests wait now, so that stale entries can be counted."""
        if request.deadline == math.inf:
            return
        self._num_added += 1  # decides between equal deadlines, since requests have no order
        heapq.heappush(self._heap, (request.deadline, self._num_added, request))
        if len(self._heap) > _FEW + 4 * num_waiting:
            self._heap = [entry for entry in self._heap if self._waits(entry[2])]
            heapq.heapify(self._heap)

    def earliest(self) -> float | None:
        """The earliest deadline of a waiting request; None if there is none."""
        while self._heap and not self._waits(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> list[R]:
        """Waiting requests whose deadline is `now` or earlier."""
        passed: list[R] = []
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if self._waits(request):
                passed.append(request)
        return passed


class DeadlineTimer:
    """Calls `ring` on the event loop, no earlier than set; `ring` sets the timer again from what is left.

    Setting it to a later time than the present one does nothing. With equal timeouts it costs one comparison a request.
    """

    def __init__(self, clock: Callable[[], float], ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Ring at this time or earlier; infinity leaves the timer as it is."""
        if at >= self._at:
            return
        self.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self._clock()), self._fire)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._at = math.inf

    def _fire(self) -> None:
        self._timer = None
        self._at = math.inf
        self._ring()
