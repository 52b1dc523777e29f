"""The policy of Ray Serve's `@serve.batch`, after ray 2.60's `serve/batching.py`.

One task collects batches from one queue. A batch is closed by its size or by a timer that starts with its first item,
*even while the device is busy*: a closed batch waits for the semaphore and cannot grow any more. With `batch_size_fn`,
an item that does not fit closes the batch and goes to the *back* of the queue. An item larger than a batch is an error.
A batch of several multiplexed models is split only after it was filled. Its parts hold one permit of the semaphore
together, and the device runs them one after another.

`max_ongoing_requests` keeps further requests with the router, in order. The router's back-off is left out, which
favours Ray.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from benchmarks.simulation.request import Context, Outcome, Request
from benchmarks.simulation.server import Server, Setup


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Settings of the decorator and of the deployment, with Ray's defaults.

    Attributes:
        counts_rows: a `batch_size_fn` counts rows, so `max_batch_size` is in rows instead of requests.
        knows_deadlines: callers send `x-request-timeout-seconds`; cancelled requests are left out of their batch.
        max_request_rows: callers cut larger requests into pieces.
    """

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.01
    max_ongoing_requests: int = 5
    counts_rows: bool = False
    knows_deadlines: bool = False
    max_request_rows: int | None = None


class RayServe(Server):
    """One replica with one `@serve.batch` method, `max_concurrent_batches=1`."""

    def __init__(self, setup: Setup, settings: RaySettings | None = None) -> None:
        super().__init__(setup)
        self._settings = settings or RaySettings()
        self.max_request_rows = self._settings.max_request_rows
        self._with_router: deque[Request] = deque()
        self._num_ongoing = 0
        self._queue: deque[Request] = deque()
        self._open: list[Request] = []
        self._open_size = 0
        self._closes_at = 0.0
        self._closed: deque[list[Request]] = deque()
        self._parts: deque[list[Request]] = deque()

    def arrive(self, request: Request) -> None:
        if self._num_ongoing >= self._settings.max_ongoing_requests:
            self._with_router.append(request)
        else:
            self._put(request)

    def _put(self, request: Request) -> None:
        self._num_ongoing += 1
        self._queue.append(request)
        self._wake_soon()

    def _wake(self) -> None:
        """The collector: runs at every arrival and when the timer of the open batch ends, even on a busy device."""
        while self._open or self._queue:
            if not self._open and not self._open_batch():
                continue
            was_deferred = self._drain()
            is_full = self._open_size >= self._settings.max_batch_size
            if not (was_deferred or is_full or self._clock.now >= self._closes_at):
                return
            self._closed.append(self._open)
            self._open = []
            if not self._is_busy:
                self._run_next()

    def _open_batch(self) -> bool:
        first = self._queue.popleft()
        size = self._size(first)
        if size > self._settings.max_batch_size:
            self._leave(first, Outcome.FAILED, self._clock.now)
            return False
        self._open, self._open_size = [first], size
        self._closes_at = self._clock.now + self._settings.batch_wait_timeout_s
        self._clock.at(self._closes_at, self._awake)
        return True

    def _drain(self) -> bool:
        """Fill the open batch from the queue; True if an item did not fit and went to the back of the queue."""
        while self._queue:
            if not self._settings.counts_rows and self._open_size >= self._settings.max_batch_size:
                return False
            item = self._queue.popleft()
            size = self._size(item)
            if self._open_size + size > self._settings.max_batch_size:
                self._queue.append(item)
                return True
            self._open.append(item)
            self._open_size += size
        return False

    def _size(self, request: Request) -> int:
        return request.num_rows if self._settings.counts_rows else 1

    def _run_next(self) -> None:
        """The semaphore is free: the next closed batch begins."""
        while self._closed and not self._is_busy:
            by_context: dict[Context, list[Request]] = {}
            for request in self._closed.popleft():
                if self._settings.knows_deadlines and request.deadline <= self._clock.now:
                    self._leave(request, Outcome.EXPIRED, request.deadline)
                else:
                    by_context.setdefault(request.context, []).append(request)
            self._parts.extend(by_context.values())
            self._run_part()

    def _run_part(self) -> None:
        if self._parts:
            self._is_busy = True
            part = self._parts.popleft()
            self._clock.at(self._occupy(sum(request.num_rows for request in part)), self._finish_part, part)

    def _finish_part(self, part: list[Request]) -> None:
        self._is_busy = False
        self._run_part()
        now = self._clock.now
        for request in part:
            if self._settings.knows_deadlines and now > request.deadline:
                self._leave(request, Outcome.EXPIRED, request.deadline)
            else:
                self._leave(request, Outcome.ANSWERED, now)
        self._run_next()

    def _leave(self, request: Request, outcome: Outcome, at: float) -> None:
        self._num_ongoing -= 1
        self._end(request, outcome, at)
        while self._with_router and self._num_ongoing < self._settings.max_ongoing_requests:
            following = self._with_router.popleft()
            if self._settings.knows_deadlines and following.deadline <= self._clock.now:
                self._end(following, Outcome.EXPIRED, following.deadline)
            else:
                self._put(following)
