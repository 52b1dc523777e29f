"""The policy of `serve/batching`: the real classes, driven as their asyncio shell drives them."""

from __future__ import annotations

from benchmarks.simulation.request import Outcome, Request
from benchmarks.simulation.server import Server, Setup
from serve.batching import (
    AdmissionController,
    AdmissionLimits,
    BatchQueue,
    BatchWatchdog,
    CostModel,
    QueueLimits,
    Slice,
)
from serve.core.errors import DeadlineTooShort, Overloaded
from serve.settings import BatchingSettings


class TabpfnServe(Server):
    """A replica after its warm-up, with the server's default settings unless others are given.

    `max_batch_rows` always follows the device.
    """

    def __init__(self, setup: Setup, settings: BatchingSettings | None = None) -> None:
        super().__init__(setup)
        device = setup.device
        settings = (settings or BatchingSettings()).model_copy(update={"max_batch_rows": device.max_batch_rows})
        self._cost = CostModel(settings.max_batch_rows)
        for context in setup.contexts:
            self._cost.seed(context, device.buckets, setup.clock.now)  # type: ignore[arg-type]  # identity is enough
        self._queue: BatchQueue[Request] = BatchQueue(self._cost, QueueLimits.of(settings))
        self._watchdog = BatchWatchdog(settings.hung_batch_factor)
        self._admission: AdmissionController[Request] = AdmissionController(
            self._queue, self._cost, self._watchdog, AdmissionLimits.of(settings)
        )

    def arrive(self, request: Request) -> None:
        now = self._clock.now
        self._expire()
        try:
            self._admission.acquire(request, now)
        except Overloaded as refusal:
            request.retry_after_s = refusal.retry_after_s
            self._end(request, Outcome.REFUSED, now)
            return
        except DeadlineTooShort:
            self._end(request, Outcome.FAILED, now)
            return
        self._queue.add(request)
        if not self._is_busy:
            self._wake_soon()

    def _wake(self) -> None:
        if self._is_busy:
            return
        now = self._clock.now
        self._expire()
        batch = self._queue.cut(now)
        if not batch:
            cut_at = self._queue.next_cut_at()
            if cut_at is not None:
                self._clock.at(max(cut_at, now), self._awake)
            return
        self._is_busy = True
        num_rows = sum(stop - start for _, start, stop in batch)
        cost = self._cost.of(batch[0].request.context)
        self._watchdog.begin(cost.predict(num_rows), now)
        self._clock.at(self._occupy(num_rows), self._finish, (batch, num_rows, now))

    def _finish(self, done: tuple[list[Slice[Request]], int, float]) -> None:
        batch, num_rows, began_at = done
        now = self._clock.now
        self._watchdog.end(now)
        self._is_busy = False
        self._settle(batch, num_rows, now - began_at)

    def _settle(self, batch: list[Slice[Request]], num_rows: int, cost_s: float) -> None:
        self._cost.of(batch[0].request.context).learn(num_rows, cost_s, self._clock.now)
        for request, start, stop in batch:
            request.rows_left -= stop - start
            if not request.rows_left and request.outcome is None:
                self._admission.release(request)
                self._end_in_time(request)
        self._wake()

    def _expire(self) -> None:
        for request in self._queue.expire(self._clock.now):
            self._admission.release(request)
            self._end(request, Outcome.EXPIRED, request.deadline)
