"""Refusing at the door: a request is admitted or refused at once, before any work is done for it.

Theory of operation
-------------------
A request is refused when its answer is predicted to come after its deadline: the rest of the batch on the device, the
rows that will be served first, its own (`BatchQueue.seconds_ahead`, in O(1)). Before a refusal the prediction is made
once more, exactly and in O(contexts): only contexts whose turn would really come first are ahead. So the queue cannot
turn an overload into waiting that nobody has use for, and what is admitted has a real chance.

Around it stand limits of what may be ongoing, queued and in flight together. By default they follow from the same two
numbers: the work that waits must fit into the time that the model gives a request by default (`set_timeout`), which
bounds the rows, whatever deadlines callers ask for. Requests have a fixed limit beside it, for each holds a socket.

A refusal says when to come back: the time by which the prediction was too late, or in which what waits is served. A
request whose own rows take longer than it has is told so, since coming back does not help it.

An estimate that refuses everybody would never be corrected, because only batches correct it. So one that says "takes
longer than any caller has" is believed only for `_DOUBT_AFTER` times itself; then one request is let through to measure
anew.

What is always true: whoever was acquired is released once, when the request has its outcome, whichever that is; a
second release is our own bug and raises.
"""

from __future__ import annotations

from typing import Generic

from serve.batching.cost import CostModel
from serve.batching.fifo import QueuedRequest, R
from serve.batching.limits import AdmissionLimits
from serve.batching.queue import BatchQueue
from serve.batching.watchdog import BatchWatchdog
from serve.core import FittedContext
from serve.core.errors import Draining, Overloaded

_WAIT_MARGIN = 1.5
"""What must be waited for counts as so much longer than it is predicted.

Under overload the queue always reaches as far as admission lets it. Were that the deadline itself, predictions a little
too hopeful would make many answers late, and their work useless. A shorter queue still fills the batches. Simulated at
twice the capacity, with a full batch of a quarter of the deadline and times that scatter by 20 %, of the admitted were
late: 29 % at 1, 5 % at 1.25, 0.5 % at 1.5.
"""

_DOUBT_AFTER = 10.0
"""A tenth of the device's time, at most, goes into asking whether a context is still as slow as it was."""


class AdmissionController(Generic[R]):
    """Decides who comes in, and holds who is ongoing. Used from the event loop only."""

    def __init__(
        self, queue: BatchQueue[R], cost: CostModel, in_flight: BatchWatchdog, limits: AdmissionLimits
    ) -> None:
        self._queue = queue
        self._cost = cost
        self._watchdog = in_flight
        self._limits = limits
        self._timeouts_s: dict[int, float] = {}
        self._closed = False
        self.ongoing: set[R] = set()
        """Admitted and without an outcome."""
        self.num_rows = 0
        """Rows of those."""

    def set_timeout(self, context: FittedContext, timeout_s: float) -> None:
        """A request for this context that names no deadline has so long. `CostModel` must hold the context."""
        self._timeouts_s[id(context)] = timeout_s

    def timeout_s(self, context: FittedContext) -> float:
        return self._timeouts_s.get(id(context), self._limits.default_timeout_s)

    def acquire(self, request: R, now: float) -> None:
        """Admit a request, which is then to be queued, or raise Draining, Overloaded. Pair with `release`."""
        self.check(request, now)
        self.ongoing.add(request)
        self.num_rows += request.num_rows

    def check(self, request: QueuedRequest, now: float) -> None:
        """Raise what `acquire` would raise for this request, and change nothing."""
        if self._closed:
            raise Draining("this replica is shutting down; send the request again, another one will take it")
        self._check_limits(request, now)
        ahead_s, own_s = self._queue.seconds_ahead(request)
        rest_s = self._watchdog.rest_s(now)
        if self._limits.max_rows is None and ahead_s > self.timeout_s(request.context):
            raise Overloaded(
                f"{self._queue.num_rows} rows wait, as many as can be answered within the default timeout",
                retry_after_s=ahead_s - self.timeout_s(request.context),
                reason="backlog",
            )
        if rest_s or ahead_s:
            own_s += self._queue.seconds_of_company(request)
        if now + _WAIT_MARGIN * (rest_s + ahead_s) + own_s > request.deadline:
            self._judge(request, now, rest_s, own_s)

    def release(self, request: R) -> None:
        """The request has its outcome. Raises KeyError for one that is not ongoing: it was released before."""
        self.ongoing.remove(request)
        self.num_rows -= request.num_rows

    def close(self) -> None:
        """Admit nothing more; who is ongoing stays so."""
        self._closed = True

    def _check_limits(self, request: QueuedRequest, now: float) -> None:
        if len(self.ongoing) >= self._limits.max_requests:
            detail, reason = f"{len(self.ongoing)} requests are ongoing", "requests"
        elif (
            self._limits.max_rows is not None
            # A request that is larger than the limit is answered when it is alone.
            and self.ongoing
            and self.num_rows + request.num_rows > self._limits.max_rows
        ):
            detail, reason = f"requests of {self.num_rows} rows are ongoing", "rows"
        else:
            return
        ahead_s, _ = self._queue.seconds_ahead(request)
        raise Overloaded(
            f"{detail}, as many as this replica takes",
            retry_after_s=self._watchdog.rest_s(now) + ahead_s,
            reason=reason,
        )

    def _judge(self, request: QueuedRequest, now: float, rest_s: float, own_s: float) -> None:
        """The exact prediction. Returns if the deadline can be kept after all, raises Overloaded otherwise."""
        time_left_s = request.deadline - now
        before_s = _WAIT_MARGIN * (rest_s + self._queue.seconds_before_turn(request))
        cost = self._cost.of(request.context)
        alone_s = cost.predict_all(request.num_rows, cost.row_budget)
        is_hopeless = alone_s > time_left_s
        if is_hopeless and now - cost.learned_at > _DOUBT_AFTER * alone_s:
            own_s = 0.0
        late_s = before_s + own_s - time_left_s
        if late_s <= 0:
            return
        if is_hopeless:
            detail = f"{request.num_rows} rows take about {1e3 * alone_s:.0f} ms here"
            retry_after_s = before_s
        else:
            detail = f"the answer may take {1e3 * (before_s + own_s):.0f} ms"
            retry_after_s = late_s
        raise Overloaded(
            f"{detail}, the deadline is in {1e3 * time_left_s:.0f} ms", retry_after_s=retry_after_s, reason="deadline"
        )
