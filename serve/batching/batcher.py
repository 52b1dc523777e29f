"""The asyncio shell of batching: waits, asks the policy, runs the device thread, hands out the answers.

Theory of operation
-------------------
Everything but the engine runs on one event loop, so nothing here needs a lock. One task (`_run`) repeats: sleep until
the queue has a batch, run it on the device thread, leave its answers to be settled. It cuts a batch only when the
device is free, so requests that arrive meanwhile ride in the next. Where the engine takes a second batch while it
computes the first, `pipeline.py` takes the place of this loop. A callback settles answers *after* the task has started
the next batch: the device does not wait for 256 futures.

Every admitted request has exactly one outcome, passed to a callback: a task for each request would cost more than all
of the policy. `outcomes.Outcomes` alone ends requests and gives back what they hold. The outcome is the first of: its
answer, a fault of the engine, its deadline, `close`, the withdrawal by its caller.
A request with an outcome cannot harm its batch: it is taken out of the queue, or its computed rows are dropped.

No request waits beyond its deadline, not even for a device that hangs: one timer is always set for the earliest
deadline of the ongoing requests, or earlier.

A batch that fails is tried again in smaller parts (`recovery.smaller_parts`) before the next is cut, so that only the
culprit fails. Its cause is logged once a batch and leaves the server in no answer. If `_run` itself fails, that is a
bug: it is logged as critical, every waiting request gets an EngineError, and no more are admitted (`failed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from serve.batching.admission import AdmissionController, AdmissionPrecheck
from serve.batching.cost import ContextCost, CostModel
from serve.batching.deadlines import DeadlineTimer
from serve.batching.device import device_of
from serve.batching.fifo import count_rows
from serve.batching.limits import AdmissionLimits, QueueLimits
from serve.batching.outcomes import AdmittedRequest, Asked, CutBatch, Outcome, Outcomes, settle_future
from serve.batching.pipeline import Pipeline
from serve.batching.queue import BatchQueue
from serve.batching.snapshot import Load
from serve.batching.watchdog import BatchWatchdog
from serve.core import Engine, FittedContext, Matrix, Prediction, PredictRequest, Priority
from serve.core.errors import DeadlineExceeded, Draining, EngineError, ServeError
from serve.settings import BatchingSettings
from serve.telemetry.recorder import ExpiryStage, Recorder

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Batcher:
    """Joins requests into batches for one engine. Lives on one event loop: `start`, then the rest, last `close`.

    Args:
        clock: monotonic seconds; deadlines of requests are on the same clock.
    """

    def __init__(
        self,
        engine: Engine,
        settings: BatchingSettings,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._cost = CostModel(settings.max_batch_rows)
        self._queue: BatchQueue[AdmittedRequest] = BatchQueue(self._cost, QueueLimits.of(settings))
        self._watchdog = BatchWatchdog(settings.hung_batch_factor)
        self._admission: AdmissionController[AdmittedRequest] = AdmissionController(
            self._queue, self._cost, self._watchdog, AdmissionLimits.of(settings), recorder
        )
        self._precheck = AdmissionPrecheck(self._admission)
        self.load = Load(self._queue, self._cost, self._watchdog, self._admission)
        self._device = device_of(engine, clock)
        self._outcomes = Outcomes(self._queue, self._cost, recorder, self._release, self._lose)
        self.withdraw = self._outcomes.withdraw
        self._deadline_timer = DeadlineTimer(clock, self._expire)
        self._batches: list[CutBatch] = []
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._pipeline: Pipeline | None = None
        if engine.max_in_flight > 1:
            self._pipeline = Pipeline(
                self._queue, self._cost, self._watchdog, self._device, self._outcomes, clock,
                self._expire_queued, self._wake, self._batches,
            )  # fmt: skip
        self._task: asyncio.Task[None] | None = None
        self._closed = self._died = False
        recorder.watch_queue(self)

    @property
    def failed(self) -> bool:
        """No request is answered: `died`, or the batch on the device hangs, which may end. Replace the replica."""
        return self._died or self.is_hung

    @property
    def died(self) -> bool:
        """The batching task died of a bug, or the device is lost."""
        return self._died

    @property
    def num_queued_requests(self) -> int:
        """Admitted requests that wait for a batch."""
        return self._queue.num_requests

    @property
    def num_in_flight_requests(self) -> int:
        """Requests in the batches in flight."""
        return len({piece.request for batch in self._batches for piece in batch.slices})

    @property
    def num_ongoing_requests(self) -> int:
        """Admitted requests without an outcome."""
        return len(self._admission.ongoing)

    @property
    def num_ongoing_rows(self) -> int:
        """Rows of those requests."""
        return self._admission.num_rows

    @property
    def is_hung(self) -> bool:
        """The batch on the device takes far longer than expected."""
        return self._watchdog.is_hung(self._clock())

    def cost_of(self, context: FittedContext) -> ContextCost:
        """The learned costs of a context."""
        return self._cost.of(context)

    def num_queued_rows(self, priority: Priority) -> int:
        """Rows that wait, of requests of this priority."""
        return self._queue.num_rows_of(priority)

    def add_context(self, context: FittedContext, seconds_by_rows: Mapping[int, float], max_backlog_s: float) -> None:
        """Begin a context with the seconds of each row bucket in its warm-up, and with its bound on waiting work.

        A context that was not added is served too; its costs are learned from its batches.
        """
        self._cost.seed(context, seconds_by_rows, self._clock())
        self._admission.set_max_backlog(context, max_backlog_s)

    async def start(self) -> None:
        """Begin batching on the running loop. Call once."""
        assert self._task is None, "started once"
        self._task = asyncio.create_task(self._run(), name="batcher")

    async def run_on_device(self, fn: Callable[[], T]) -> T:
        """Run blocking work on the device thread, after the work that is there, even if the caller is cancelled.

        Raises the exceptions of `fn`, and Draining once closed.
        """
        if self._closed:
            raise Draining("this replica is shutting down")
        return await self._device.run(fn)

    def precheck(self, model: str, context: FittedContext, deadline: float, priority: Priority) -> None:
        """Return if one row would be admitted now; raises the refusal otherwise. See `AdmissionPrecheck`."""
        self._precheck.check(model, context, deadline, priority, self._clock())

    async def submit(self, request: PredictRequest, context: FittedContext, rows: Matrix) -> Prediction:
        """Answer one request, in a batch with others; cancelling the caller drops the request.

        Args:
            rows: float64 [rows, features], the request's table as `context` encodes it; split if it exceeds a batch.

        Raises:
            Overloaded, DeadlineTooShort: refused; no work was done.
            Draining: likewise, or `close` came before the answer.
            DeadlineExceeded: the deadline passed before the answer.
            EngineError: the device failed on these rows.
        """
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        admitted = self.admit(request, context, rows, partial(settle_future, answer))
        try:
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # counts as retrieved even where a cancellation came first
            self.withdraw(admitted)

    def admit(
        self, request: Asked, context: FittedContext, rows: Matrix, on_outcome: Callable[[Outcome], None], *,
        is_checked: bool = False,
    ) -> AdmittedRequest:  # fmt: skip
        """As `submit`, with a callback: `on_outcome` is called once, later, unless the request is withdrawn before.

        Raises the refusals of `submit`, unless `is_checked`: `precheck` has passed its one row just now.
        """
        now = self._clock()
        if request.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was read")
        admitted = AdmittedRequest(request, context, rows, now, on_outcome)
        self._admission.acquire(admitted, now, is_checked=is_checked)
        self._queue.add(admitted)
        self._idle.clear()
        self._deadline_timer.set(admitted.deadline)
        if self._pipeline is None or self._pipeline.needs_turn(context):
            self._wake.set()
        return admitted

    def _release(self, admitted: AdmittedRequest) -> None:
        self._admission.release(admitted)
        if not self._admission.ongoing:
            self._deadline_timer.cancel()
            self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Admit no more requests and wait until none is ongoing, at most `timeout_s`. May be called more than once."""
        self._admission.close()
        self._queue.stop_waiting()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def close(self) -> None:
        """Fail the ongoing requests with Draining, stop the task and wait for the device to end its batches.

        Callers are answered before the wait. May be called more than once.
        """
        self._closed = True
        if self._admission.ongoing:
            _log.warning("closing with %d requests unanswered", len(self._admission.ongoing))
        self._fail_all(Draining, "this replica shut down before the answer")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._device.finish()

    async def _run(self) -> None:
        try:
            await (self._run_one_by_one() if self._pipeline is None else self._pipeline.run())
        except Exception:
            self._died = True
            _log.critical("the batching task died; this replica answers no more requests", exc_info=True)
            self._fail_all(EngineError, "this replica failed")
        finally:
            self._batches.clear()
            self._watchdog.clear()
            self._fail_all(Draining, "this replica stopped before the answer")

    async def _run_one_by_one(self) -> None:
        while True:
            batch, cut_at = await self._next_batch()
            self._batches.append(batch)
            await self._execute(batch, cut_at)
            self._batches.clear()

    async def _next_batch(self) -> tuple[CutBatch, float]:
        """Sleep until there is a batch; returns it and when it was cut. No timer runs while the queue is empty."""
        while True:
            self._wake.clear()
            now = self._clock()
            self._expire_queued(now)
            if slices := self._queue.cut(now):
                return CutBatch(slices), now
            cut_at = self._queue.next_cut_at()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if cut_at is None else cut_at - now):
                    await self._wake.wait()

    async def _execute(self, batch: CutBatch, began_at: float) -> None:
        """Run a batch to its end, in smaller parts where it fails.

        The learned cost is the time for which the next batch had to wait: from the cut until this task has its turn
        again. Beside fast batches, cutting them and crossing threads are no small part.
        """
        parts = [batch.slices]
        while parts:
            # A request with an outcome, such as one whose caller has just been cancelled, is not computed.
            part = [piece for piece in parts.pop() if not piece.request.is_done]
            if not part:
                self._outcomes.drop(batch)
                continue
            num_rows = count_rows(part)
            self._watchdog.begin(self._cost.of(part[0].request.context).predict(num_rows), began_at)
            computed = await self._device.compute(part)
            ended_at = self._clock()
            if self._watchdog.is_hung(ended_at):
                _log.error("a batch of %d rows took %.1f s", num_rows, ended_at - began_at)
            self._watchdog.end(ended_at)
            parts.extend(reversed(self._outcomes.conclude(batch, part, computed, ended_at - began_at)))
            began_at = ended_at

    def _expire(self) -> None:
        """The timer rang: every request whose deadline has passed gets its outcome, wherever it is."""
        now = self._clock()
        self._expire_queued(now)
        earliest = self._queue.next_expiry_at()
        earliest = math.inf if earliest is None else earliest
        for request in {piece.request for batch in self._batches for piece in batch.slices}:
            if not request.is_done:
                if request.deadline <= now:
                    self._outcomes.expire(request, ExpiryStage.IN_FLIGHT)
                else:
                    earliest = min(earliest, request.deadline)
        self._deadline_timer.set(earliest)

    def _lose(self) -> None:
        self._died = True
        self._fail_all(EngineError, "this replica lost its device")

    def _expire_queued(self, now: float) -> None:
        for request in self._queue.expire(now):
            self._outcomes.expire(request, ExpiryStage.QUEUED)

    def _fail_all(self, error: type[ServeError], detail: str) -> None:
        """Admit no more requests, and give every ongoing one this outcome; the timer goes with the last."""
        self._admission.close()
        self._queue.clear()
        for request in list(self._admission.ongoing):
            self._outcomes.finish(request, error(detail))
