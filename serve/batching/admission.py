"""Admission control: a request is admitted or refused at once, before any work is done for it.

Theory of operation
-------------------
A request is refused when its answer is predicted to come after its deadline. The prediction adds the remaining time of
the batches in flight, the rows that will be served first, and the request's own rows (`BatchQueue.forecast`, in
O(1)). Before a refusal the prediction is made once more, exactly and in O(contexts): only contexts whose turn would
really come first count. So overload does not turn into waiting of no use, and admitted requests have a real chance.

Around the prediction stand limits on ongoing requests, queued and in flight together. By default the work that waits
must fit into the model's default timeout (`set_max_backlog`), which bounds the rows whatever deadlines callers ask for.
The number of requests has a fixed limit beside it, because each request holds a socket.

A refusal says when to try again: after the time by which the prediction was too late, or in which the waiting rows are
served. A request is *hopeless* if its own rows take longer than its deadline. Where they did so at every cost that was
ever measured, no retry can help, and it gets DeadlineTooShort in place of Overloaded.

An estimate that refuses every request would never be corrected, because only batches correct it. So a hopeless request
is let through now and then, to measure anew; its rows leave the queue at its deadline, so it wastes little:
- An estimate holds for `_DOUBT_AFTER` times the device time that such a request can waste.
- A value of the warm-up is asked at once, if the device is idle and an error of `MAX_SEED_ERROR` explains the lateness.

What is always true: an acquired request is released once, with its outcome. A second release is a bug and raises.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Generic, NamedTuple

from serve.batching.admission_inputs import ContextTimes, Costs, DeviceTime, WaitingWork
from serve.batching.cost import MAX_SEED_ERROR, CostModel
from serve.batching.fifo import QueuedRequest, R
from serve.batching.limits import AdmissionLimits
from serve.batching.queue import BatchQueue
from serve.batching.watchdog import BatchWatchdog
from serve.core import FittedContext, Priority
from serve.core.errors import DeadlineTooShort, Draining, Overloaded
from serve.telemetry.recorder import Recorder

_WAIT_MARGIN = 1.5
"""Predicted waiting time counts this many times.

Under overload the queue always reaches as far as admission lets it. If that were the deadline itself, slightly hopeful
predictions would make many answers late and their work useless. A shorter queue still fills the batches. Simulated at
twice the capacity, with a full batch of a quarter of the deadline and times that scatter by 20 %, the share of admitted
requests that were late was 29 % at 1, 5 % at 1.25 and 0.5 % at 1.5.
"""

_DOUBT_AFTER = 10.0
"""At most a tenth of the device's time goes into asking whether a context is still as slow as it was."""


class AdmissionCheck(ABC):
    """Would a request be admitted now? The same answer in the process of the batcher and, on a copy, in others.

    Every refusal is reported to `recorder` here and nowhere else.
    """

    def __init__(
        self,
        queue: WaitingWork,
        cost: Costs,
        watchdog: DeviceTime,
        limits: AdmissionLimits,
        recorder: Recorder | None = None,
    ) -> None:
        self._queue = queue
        self._cost = cost
        self._watchdog = watchdog
        self._limits = limits
        self._recorder = recorder or Recorder()
        self._max_backlog_s: dict[int, float] = {}

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """No more requests are admitted."""

    @property
    @abstractmethod
    def num_requests(self) -> int:
        """Admitted requests without an outcome."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows of those."""

    def set_max_backlog(self, context: FittedContext, max_backlog_s: float) -> None:
        """Let at most so many seconds of work wait for this context. The costs must hold the context."""
        self._max_backlog_s[id(context)] = max_backlog_s

    def check(self, request: QueuedRequest, now: float) -> None:
        """Return if this request would be admitted now, and change nothing.

        Raises Draining, Overloaded, DeadlineTooShort, unless `is_checked`: `check` has just passed it.
        """
        if self.is_closed:
            raise Draining("this replica is shutting down; send the request again, another replica will take it")
        try:
            self._check_limits(request, now)
            self._check_time(request, now)
        except Overloaded as refusal:
            self._recorder.refused(request.model, refusal.reason)
            raise
        except DeadlineTooShort:
            self._recorder.refused(request.model, "too_short")
            raise

    def _check_limits(self, request: QueuedRequest, now: float) -> None:
        if self.num_requests >= self._limits.max_requests:
            detail, reason = f"{self.num_requests} requests are ongoing", "requests"
        elif (
            self._limits.max_rows is not None
            # A request that is larger than the limit is answered when it is alone.
            and self.num_requests
            and self.num_rows + request.num_rows > self._limits.max_rows
        ):
            detail, reason = f"requests of {self.num_rows} rows are ongoing", "rows"
        else:
            return
        ahead_s = self._queue.forecast(request).before_s
        raise Overloaded(
            f"{detail}, the most that this replica takes",
            retry_after_s=self._watchdog.remaining_s(now) + ahead_s,
            reason=reason,
        )

    def _check_time(self, request: QueuedRequest, now: float) -> None:
        """The prediction in O(1); only a request that fails it is predicted exactly."""
        ahead_s, own_s, company_s = self._queue.forecast(request)
        remaining_s = self._watchdog.remaining_s(now)
        max_backlog_s = self._max_backlog_s.get(id(request.context), self._limits.max_backlog_s)
        if self._limits.max_rows is None and ahead_s > max_backlog_s:
            raise Overloaded(
                f"{self._queue.num_rows} rows wait, the most that can be answered within the default timeout",
                retry_after_s=ahead_s - max_backlog_s,
                reason="backlog",
            )
        if remaining_s or ahead_s:
            own_s += company_s
        if now + _WAIT_MARGIN * (remaining_s + ahead_s) + own_s > request.deadline:
            self._check_exactly(request, now, remaining_s, own_s)

    def _check_exactly(self, request: QueuedRequest, now: float, remaining_s: float, own_s: float) -> None:
        """The exact prediction. Returns if the deadline can be kept after all, raises a refusal otherwise."""
        time_left_s = request.deadline - now
        before_s = _WAIT_MARGIN * (remaining_s + self._queue.seconds_before_turn(request))
        cost = self._cost.of(request.context)
        alone_s = cost.predict_all(request.num_rows, self._queue.max_batch_rows(request, cost))
        if alone_s > time_left_s:
            self._check_hopeless(request, now, before_s, alone_s)
        elif before_s + own_s > time_left_s:
            raise Overloaded(
                f"the answer may take {1e3 * (before_s + own_s):.0f} ms, the deadline is in {1e3 * time_left_s:.0f} ms",
                retry_after_s=before_s + own_s - time_left_s,
                reason="deadline",
            )

    def _check_hopeless(self, request: QueuedRequest, now: float, before_s: float, alone_s: float) -> None:
        """Return if this request may measure anew; its rows take `alone_s`, longer than its deadline."""
        time_left_s = request.deadline - now
        cost = self._cost.of(request.context)
        batch_rows = self._queue.max_batch_rows(request, cost)
        doubted_at = _doubted_at(cost, min(request.num_rows, batch_rows), alone_s, time_left_s, not before_s)
        one_s = cost.predict(1)
        if one_s > time_left_s:  # then more rows are asked no sooner than one, as the precheck promises
            doubted_at = max(doubted_at, _doubted_at(cost, 1, one_s, time_left_s, not before_s))
            one_s = 0.0
        if now > doubted_at and before_s + one_s <= time_left_s:
            return
        detail = (
            f"{request.num_rows} rows take about {1e3 * alone_s:.0f} ms here, "
            f"the deadline is in {1e3 * time_left_s:.0f} ms"
        )
        if cost.fastest(request.num_rows, batch_rows) > time_left_s:
            raise DeadlineTooShort(f"{detail}; allow more time, or send fewer rows in one request")
        raise Overloaded(detail, retry_after_s=max(before_s, doubted_at - now), reason="deadline")


class AdmissionController(AdmissionCheck, Generic[R]):
    """Decides which requests are admitted, and holds the ongoing ones. Used from the event loop only."""

    def __init__(
        self,
        queue: BatchQueue[R],
        cost: CostModel,
        watchdog: BatchWatchdog,
        limits: AdmissionLimits,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(queue, cost, watchdog, limits, recorder)
        self._closed = False
        self._num_rows = 0
        self.ongoing: set[R] = set()
        """Admitted requests without an outcome."""

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def num_requests(self) -> int:
        return len(self.ongoing)

    @property
    def num_rows(self) -> int:
        return self._num_rows

    def acquire(self, request: R, now: float, *, is_checked: bool = False) -> None:
        """Admit a request, which is then to be queued. Pair with `release`.

        Raises what `check` raises, unless `is_checked`: `check` has just passed it.
        """
        if not is_checked:
            self.check(request, now)
        self.ongoing.add(request)
        self._num_rows += request.num_rows

    def release(self, request: R) -> None:
        """The request has its outcome. Raises KeyError for one that is not ongoing: it was released before."""
        self.ongoing.remove(request)
        self._num_rows -= request.num_rows

    def close(self) -> None:
        """Admit no more requests; ongoing ones stay."""
        self._closed = True


def _doubted_at(cost: ContextTimes, batch_rows: int, alone_s: float, time_left_s: float, is_idle: bool) -> float:
    """From when on a hopeless request may measure batches of `batch_rows` anew."""
    if is_idle and not cost.has_run(batch_rows) and alone_s <= MAX_SEED_ERROR * time_left_s:
        return -math.inf
    wasted_s = min(alone_s, time_left_s + cost.predict(batch_rows))
    return cost.measured_at(batch_rows) + _DOUBT_AFTER * wasted_s


class OneRow(NamedTuple):
    """The smallest possible request; see `fifo.QueuedRequest`."""

    model: str
    context: FittedContext
    num_rows: int
    priority: Priority
    arrived_at: float
    deadline: float


class AdmissionPrecheck:
    """The check for an early refusal: would a request of one row be refused now?

    Reading a request costs more than refusing it, and under overload most are refused. So a server that has only the
    headers asks here first. The answer is `AdmissionCheck.check` for one row: a request with more rows takes no less,
    so it would be refused too. (Where noise made the estimate of a larger row bucket the cheaper one, the single row
    decides.) A request that passes is not admitted yet: `Batcher.submit` checks it again, with its rows.
    """

    def __init__(self, admission: AdmissionCheck) -> None:
        self._admission = admission

    def check(self, model: str, context: FittedContext, deadline: float, priority: Priority, now: float) -> None:
        """Return if one row would be admitted now.

        Raises:
            Overloaded, DeadlineTooShort: the request is refused; the refusal has been reported.
            Draining: no request is admitted any more.
        """
        self._admission.check(OneRow(model, context, 1, priority, now, deadline), now)
