"""The waiting requests of one context: a FIFO per priority, taken from the front by rows.

What is always true: only the request at the head can be taken in part, since rows leave from the front only. So one
number of the FIFO says where the head was split, and a request itself does not change.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from serve.batching.cost import ContextCost
from serve.batching.limits import QueueLimits
from serve.core import FittedContext, Priority


class QueuedRequest(Protocol):
    """A request as the policy sees it. Compared and hashed by identity; nothing here changes while it waits."""

    @property
    def model(self) -> str:
        """Name of the model, for metrics; the policy does not read it."""

    @property
    def context(self) -> FittedContext:
        """The batch key."""

    @property
    def num_rows(self) -> int:
        """1 or more; a request with more rows than a batch is answered in several."""

    @property
    def priority(self) -> Priority:
        """Which FIFO of the context holds it."""

    @property
    def arrived_at(self) -> float:
        """When it was queued, in seconds on the clock of `now`."""

    @property
    def deadline(self) -> float:
        """When its caller gives up, on the same clock; infinity for never."""


R = TypeVar("R", bound=QueuedRequest)


class Slice(NamedTuple, Generic[R]):
    """Rows `start` to `stop` (exclusive) of a request, in one batch."""

    request: R
    start: int
    stop: int


def count_rows(slices: Sequence[Slice[R]]) -> int:
    """Rows of a batch."""
    return sum(stop - start for _, start, stop in slices)


def turn_of(request: QueuedRequest, limits: QueueLimits) -> float:
    """The context whose oldest request has the lowest value has the device first."""
    return min(request.deadline, request.arrived_at + limits.max_turn_delay_s)


class Fifo(Generic[R]):
    """Requests of one context and priority, in order of arrival.

    `waiting` maps each request to its epoch, a number that `BatchQueue` gave it on arrival.
    """

    __slots__ = ("_head_start", "num_rows", "waiting")

    def __init__(self) -> None:
        self.waiting: OrderedDict[R, int] = OrderedDict()
        self.num_rows = 0
        """Rows that have not been taken."""
        self._head_start = 0

    def __bool__(self) -> bool:
        return bool(self.waiting)

    @property
    def head(self) -> R:
        """The oldest request."""
        return next(iter(self.waiting))

    def add(self, request: R, epoch: int) -> None:
        """Put a request at the end."""
        assert request not in self.waiting, "a request is queued once"
        self.waiting[request] = epoch
        self.num_rows += request.num_rows

    def remove(self, request: R) -> int:
        """Take out the remaining rows of a request; returns how many."""
        left = request.num_rows
        if self._head_start and request is self.head:
            left -= self._head_start
            self._head_start = 0
        del self.waiting[request]
        self.num_rows -= left
        return left

    def take(self, max_rows: int, slices: list[Slice[R]]) -> list[tuple[R, int]]:
        """Move up to `max_rows` rows from the front into `slices`; returns requests that left, with their epochs."""
        left: list[tuple[R, int]] = []
        start = self._head_start
        room = min(max(max_rows, 0), self.num_rows)
        self.num_rows -= room
        while room:
            request = next(iter(self.waiting))
            stop = request.num_rows
            if stop - start > room:
                slices.append(Slice(request, start, start + room))
                start += room
                break
            slices.append(Slice(request, start, stop))
            room -= stop - start
            start = 0
            left.append((request, self.waiting.pop(request)))
        self._head_start = start
        return left


class WaitingTimes(NamedTuple):
    """The work of one context that waits, in seconds, and the turns of its two oldest requests (infinity for none)."""

    interactive_s: float
    bulk_s: float
    interactive_turn: float
    bulk_turn: float

    def before(self, turn: float, *, is_own: bool, is_bulk: bool) -> float:
        """Seconds of this work that are served before a request with this turn.

        `is_own` says that the request is of the same context, `is_bulk` that it has bulk priority.
        """
        seconds = 0.0
        if is_own or is_bulk or self.interactive_turn <= turn:
            seconds += self.interactive_s
        if is_bulk and (is_own or self.bulk_turn <= turn):
            seconds += self.bulk_s
        return seconds


class ContextQueue(Generic[R]):
    """Both FIFOs of one context, and the predicted device time of each in seconds."""

    __slots__ = ("bulk", "bulk_s", "bulk_served_at", "cost", "interactive", "interactive_s")

    def __init__(self, cost: ContextCost) -> None:
        self.cost = cost
        self.interactive: Fifo[R] = Fifo()
        self.bulk: Fifo[R] = Fifo()
        self.interactive_s = 0.0
        self.bulk_s = 0.0
        self.bulk_served_at = float("-inf")
        """When bulk rows of this context were last in a batch."""

    def recount(self, limits: QueueLimits) -> None:
        """Predict both FIFOs anew, after their rows or costs changed."""
        cost, rows, bulk_rows = self.cost, self.interactive.num_rows, self.bulk.num_rows
        self.interactive_s = cost.predict_all(rows, cost.row_budget) if rows else 0.0
        self.bulk_s = cost.predict_all(bulk_rows, limits.max_bulk_rows(cost)) if bulk_rows else 0.0

    def times(self, limits: QueueLimits) -> WaitingTimes:
        """The waiting work, and when it has its turn."""
        interactive_turn = turn_of(self.interactive.head, limits) if self.interactive else math.inf
        bulk_turn = turn_of(self.bulk.head, limits) if self.bulk else math.inf
        return WaitingTimes(self.interactive_s, self.bulk_s, interactive_turn, bulk_turn)

    def fifo(self, priority: Priority) -> Fifo[R]:
        """The FIFO of a priority."""
        return self.bulk if priority is Priority.BULK else self.interactive

    @property
    def num_rows(self) -> int:
        """Waiting rows of both FIFOs."""
        return self.interactive.num_rows + self.bulk.num_rows

    @property
    def oldest_arrival(self) -> float:
        """When the older of the two heads arrived."""
        if not self.bulk:
            return self.interactive.head.arrived_at
        bulk = self.bulk.head.arrived_at
        return min(bulk, self.interactive.head.arrived_at) if self.interactive else bulk

    @property
    def bulk_waits_since(self) -> float:
        """Since when the bulk FIFO has not been served; infinity if it is empty."""
        return max(self.bulk.head.arrived_at, self.bulk_served_at) if self.bulk else float("inf")
