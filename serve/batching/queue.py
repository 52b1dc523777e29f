"""The batching policy, as a state machine: no clock, thread or event loop; time is an argument.

Theory of operation
-------------------
Requests of one fitted context may share a forward pass, others may not: the batch key is the *identity* of the fitted
context, and there is one FIFO per key. A FIFO lives only while it holds a request, which keeps the key valid.

When the device can take a batch, the shell calls `cut(now)`:

- a FIFO is ready when waiting for company can gain nothing or is over: its rows fill a batch, or its oldest request
  arrived `max_queue_delay_s` ago or longer. With a delay of 0 every FIFO is always ready: "never wait", and still all
  that queued while the device was busy rides together;
- of the ready FIFOs the one whose oldest request came first has its turn, so no context starves another;
- it is taken from the front until the next request does not fit into `max_batch_rows`. That one closes the batch and
  stays at the head, however small those behind it are: nobody is overtaken within a FIFO, so nobody starves in it.

What is always true:
- an added request leaves exactly once: by `cut`, `remove` (its caller went away) or `clear`;
- a batch holds 1 to `max_batch_rows` rows of one context, in order of arrival;
- `cut(now)` is empty exactly when `next_cut_at()` is None or later than `now`, so the shell sleeps until then or until
  the next `add`, and never polls.

What would break it: a request that is added twice or whose hash is not its identity (answers would be lost), and
`arrived_at` from another clock than `now` (the delay would mean nothing).

The place of what is to come: deadlines and priorities change which FIFO has its turn (`_Fifo.turn`) and when it is
ready (`_cut_at`); splitting a request larger than a batch changes only `_take`. Nothing outside decides any of them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from serve.core import FittedContext


class QueuedRequest(Protocol):
    """What the policy must know of a request. Compared and hashed by identity."""

    @property
    def context(self) -> FittedContext:
        """The batch key."""

    @property
    def num_rows(self) -> int:
        """From 1 to `max_batch_rows`."""

    @property
    def arrived_at(self) -> float:
        """Seconds on the clock that `now` is read from."""


R = TypeVar("R", bound=QueuedRequest)


class _Fifo(Generic[R]):
    """Requests of one context, each with its number in the order of arrival over all contexts. Never left empty."""

    def __init__(self) -> None:
        self.numbers: OrderedDict[R, int] = OrderedDict()
        self.num_rows = 0

    @property
    def oldest(self) -> R:
        return next(iter(self.numbers))

    def turn(self) -> int:
        """The lowest has the device first."""
        return self.numbers[self.oldest]


class BatchQueue(Generic[R]):
    """Waiting requests, and the decision which of them ride together. See the theory above."""

    def __init__(self, max_batch_rows: int, max_queue_delay_s: float) -> None:
        self._max_batch_rows = max_batch_rows
        self._max_queue_delay_s = max_queue_delay_s
        self._fifos: dict[int, _Fifo[R]] = {}
        self._num_added = 0
        self._num_requests = 0
        self._num_rows = 0

    @property
    def num_requests(self) -> int:
        return self._num_requests

    @property
    def num_rows(self) -> int:
        return self._num_rows

    def add(self, request: R) -> None:
        """Put a request at the end of its context's FIFO."""
        assert 1 <= request.num_rows <= self._max_batch_rows, "a request's rows are checked before it is queued"
        fifo = self._fifos.setdefault(id(request.context), _Fifo())
        assert request not in fifo.numbers, "a request is queued once"
        fifo.numbers[request] = self._num_added
        fifo.num_rows += request.num_rows
        self._num_added += 1
        self._num_requests += 1
        self._num_rows += request.num_rows

    def remove(self, request: R) -> bool:
        """Take a request out wherever it stands, as if it had never come; False if it is not waiting here."""
        key = id(request.context)
        fifo = self._fifos.get(key)
        if fifo is None or request not in fifo.numbers:
            return False
        del fifo.numbers[request]
        fifo.num_rows -= request.num_rows
        if not fifo.numbers:
            del self._fifos[key]
        self._num_requests -= 1
        self._num_rows -= request.num_rows
        return True

    def next_cut_at(self) -> float | None:
        """When `cut` will next give a batch if nothing is added or removed; past or present: now; None: never."""
        return min((self._cut_at(fifo) for fifo in self._fifos.values()), default=None)

    def cut(self, now: float) -> list[R]:
        """Take out the next batch, for a device that is free; empty if there is reason to wait or nothing waits."""
        ready = [fifo for fifo in self._fifos.values() if self._cut_at(fifo) <= now]
        return self._take(min(ready, key=_Fifo.turn)) if ready else []

    def stop_waiting(self) -> None:
        """No more company will come: from now on every FIFO is ready."""
        self._max_queue_delay_s = 0.0

    def clear(self) -> list[R]:
        """Take everything out."""
        left = [request for fifo in self._fifos.values() for request in fifo.numbers]
        self._fifos.clear()
        self._num_requests = self._num_rows = 0
        return left

    def _cut_at(self, fifo: _Fifo[R]) -> float:
        # As many rows as a batch holds mean that it is full, or closed by a request that does not fit.
        full = fifo.num_rows >= self._max_batch_rows
        return fifo.oldest.arrived_at + (0.0 if full else self._max_queue_delay_s)

    def _take(self, fifo: _Fifo[R]) -> list[R]:
        batch: list[R] = []
        free_rows = self._max_batch_rows
        while fifo.numbers and fifo.oldest.num_rows <= free_rows:
            request = fifo.oldest
            self.remove(request)
            batch.append(request)
            free_rows -= request.num_rows
        return batch
