"""The asyncio shell of batching: it waits, calls the policy, runs the device thread and hands out the answers.

Theory of operation
-------------------
Everything but the engine runs on one event loop, so nothing here needs a lock. One task (`_run`) repeats: sleep until
the queue has a batch to give, run it on the single device thread, leave its answers to be settled. It cuts a batch
only when the device is free, so at most one is on the device and whatever queues meanwhile rides in the next. Answers
are settled by a callback *after* the task went on to start the next batch: the device does not wait for 256 futures.

Every admitted request has exactly one outcome, and one place gives back what it holds: the `finally` of `submit`. Its
future is set by the first of: its answer, an engine fault, its deadline, `close`, its own caller's cancellation.
Whoever comes later finds it done and leaves it. A request that is done cannot harm its batch-mates: still queued it is
taken out, on the device its rows are computed and dropped.

Nobody waits beyond the deadline, not even for a device that hangs: one alarm is always set for the earliest deadline
of those who are ongoing, or earlier. It is set when a request comes, and when it rings, from all that are left.

A batch that fails is tried again in smaller parts (`recovery.py`) before the next is cut, so that only the culprit
fails. What failed is logged once a batch, and its text goes no further. If `_run` itself should ever fail, that is our
own bug: it is logged as critical, everyone waiting gets an EngineError and nothing more is admitted (`failed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from serve.batching.admission import AdmissionController
from serve.batching.alarm import Alarm
from serve.batching.cost import CostModel
from serve.batching.device import Computed, Device
from serve.batching.fifo import Slice
from serve.batching.limits import AdmissionLimits, QueueLimits
from serve.batching.outcomes import Outcomes
from serve.batching.precheck import AdmissionPrecheck
from serve.batching.queue import BatchQueue
from serve.batching.recovery import WrongAnswer, num_rows_of, smaller_parts
from serve.batching.request import Request
from serve.batching.watchdog import BatchWatchdog
from serve.core import Engine, FittedContext, Matrix, Prediction, Priority
from serve.core.errors import DeadlineExceeded, DeviceLost, Draining, EngineError, OutOfMemory, Overloaded, ServeError
from serve.settings import BatchingSettings
from serve.telemetry.prometheus import Metrics

_log = logging.getLogger(__name__)

T = TypeVar("T")
Slices = Sequence[Slice[Request]]


class Batcher:
    """Joins requests into batches for one engine. Lives on one event loop: `start`, then the rest, last `close`."""

    def __init__(
        self,
        engine: Engine,
        settings: BatchingSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._cost = CostModel(settings.max_batch_rows)
        self._queue: BatchQueue[Request] = BatchQueue(self._cost, QueueLimits.of(settings))
        self._watchdog = BatchWatchdog(settings.hung_batch_factor)
        self._admission: AdmissionController[Request] = AdmissionController(
            self._queue, self._cost, self._watchdog, AdmissionLimits.of(settings)
        )
        self.gate = AdmissionPrecheck(self._admission, metrics, clock)
        self._device = Device(engine, clock)
        self._outcomes = Outcomes(self._queue, self._cost, metrics)
        self._alarm = Alarm(clock, self._expire)
        self._on_device: Slices = ()
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._closed = self._died = False
        metrics.queued_requests.set_function(lambda: self._queue.num_requests)
        for priority in Priority:
            count = functools.partial(self._queue.num_rows_of, priority)
            metrics.queued_rows.labels(priority.value).set_function(count)
        metrics.in_flight_requests.set_function(lambda: len(self._on_device))

    @property
    def failed(self) -> bool:
        """Nothing is answered any more: the batching task died of a bug, the device is lost, or its batch hangs.

        The replica should then be replaced. A batch that comes back after all takes the last back.
        """
        return self._died or self._watchdog.is_overrun(self._clock())

    @property
    def died(self) -> bool:
        """`failed` without a way back."""
        return self._died

    def add_context(self, context: FittedContext, seconds_by_rows: Mapping[int, float], timeout_s: float) -> None:
        """Tell what the warm-up measured of a context, and how long its requests have where they do not say.

        A context that was not added is served too; its costs are learned from its batches.
        """
        self._cost.seed(context, seconds_by_rows, self._clock())
        self._admission.set_timeout(context, timeout_s)

    async def start(self) -> None:
        """Begin batching on the running loop. Call once."""
        assert self._task is None, "started once"
        self._task = asyncio.create_task(self._run(), name="batcher")

    async def run_on_device(self, fn: Callable[[], T]) -> T:
        """Run blocking work on the device thread, after what is there; its exceptions are raised here.

        Cancelling the caller does not stop work that has begun. Raises Draining once closed.
        """
        if self._closed:
            raise Draining("this replica is shutting down")
        return await self._device.run(fn)

    async def submit(
        self,
        context: FittedContext,
        rows: Matrix,
        *,
        model: str,
        timeout_s: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Prediction:
        """Answer one request's rows, in company; cancelling the caller drops the request.

        Args:
            rows: float64 [rows, features] as encoded by `context`; 1 or more, split if a batch does not hold them.
            model: the metrics' label.
            timeout_s: the deadline, from now; None takes the context's own.

        Raises:
            Overloaded, Draining: refused, nothing was done.
            DeadlineExceeded: the deadline passed before the answer.
            EngineError: the device failed on these rows.
            Draining: also where `close` came before the answer.
        """
        assert self._task is not None, "start before submit"
        request = self._request(context, rows, model, timeout_s, priority)
        self._acquire(request)
        answer = request.answer
        self._idle.clear()
        try:
            self._queue.add(request)
            self._alarm.set(request.deadline)
            self._wake.set()
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # counts as seen even where a cancellation overtook it
            self._queue.remove(request)
            self._admission.release(request)
            if not self._admission.ongoing:
                self._alarm.cancel()
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Admit nothing more and wait until nothing is ongoing, at most `timeout_s`. May be called more than once."""
        self._admission.close()
        self._queue.stop_waiting()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def close(self) -> None:
        """Fail what is left with Draining, stop the task and wait for the device thread to end its batch.

        Callers are answered before the wait. May be called more than once.
        """
        self._closed = True
        if self._admission.ongoing:
            _log.warning("closing with %d requests unanswered", len(self._admission.ongoing))
        self._fail_everyone(Draining, "this replica shut down before the answer")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._device.shutdown)

    def _request(
        self, context: FittedContext, rows: Matrix, model: str, timeout_s: float | None, priority: Priority
    ) -> Request:
        now = self._clock()
        deadline = now + (self._admission.timeout_s(context) if timeout_s is None else timeout_s)
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        return Request(context, rows, len(rows), model, priority, now, deadline, answer)

    def _acquire(self, request: Request) -> None:
        if request.deadline <= request.arrived_at:
            raise DeadlineExceeded("the deadline passed before the request was read")
        try:
            self._admission.acquire(request, request.arrived_at)
        except Overloaded as refusal:
            self._metrics.refused_requests.labels(request.model, refusal.reason).inc()
            raise

    async def _run(self) -> None:
        try:
            while True:
                batch, cut_at = await self._next_batch()
                self._on_device = batch
                await self._execute(batch, cut_at)
                self._on_device = ()
        except Exception:
            self._died = True
            _log.critical("the batching task died; this replica answers nothing more", exc_info=True)
            self._fail_everyone(EngineError, "this replica failed")
        finally:
            self._on_device = ()
            self._watchdog.end()
            self._fail_everyone(Draining, "this replica stopped before the answer")

    async def _next_batch(self) -> tuple[Slices, float]:
        """Sleep until there is a batch, and when it was cut; no timer while nothing waits."""
        while True:
            self._wake.clear()
            now = self._clock()
            self._expire_queued(now)
            if batch := self._queue.cut(now):
                return batch, now
            cut_at = self._queue.next_cut_at()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if cut_at is None else cut_at - now):
                    await self._wake.wait()

    async def _execute(self, batch: Slices, began_at: float) -> None:
        """Run a batch to its end, where it fails in ever smaller parts.

        The cost that is learned is the time for which the next batch had to wait, from the cut until this task has its
        turn again: beside fast batches, cutting them and crossing threads are no small part.
        """
        parts = [batch]
        while parts:
            # Who has an outcome already, such as a cancelled caller whose task did not yet run, is not computed for.
            if part := [piece for piece in parts.pop() if not piece.request.answer.done()]:
                num_rows = num_rows_of(part)
                self._watchdog.begin(self._cost.of(part[0].request.context).predict(num_rows), began_at)
                computed = await self._device.compute(part)
                ended_at = self._clock()
                if self._watchdog.is_overrun(ended_at):
                    _log.error("a batch of %d rows took %.1f s", num_rows, ended_at - began_at)
                self._watchdog.end()
                parts.extend(reversed(self._conclude(part, computed, ended_at - began_at)))
                began_at = ended_at
        self._outcomes.log_faults(batch)

    def _conclude(self, part: Slices, computed: Computed, cost_s: float) -> list[list[Slice[Request]]]:
        """Leave a part's answers to be settled, or decide on its failure; the parts that are to be tried instead."""
        error = computed.error
        if error is None:
            asyncio.get_running_loop().call_soon(self._outcomes.settle, part, computed, cost_s)
            return []
        model = part[0].request.model
        if isinstance(error, OutOfMemory):
            self._metrics.out_of_memory.labels(model).inc()
            cost = self._cost.of(part[0].request.context)
            cost.lower_budget(num_rows_of(part), self._clock())
            _log.error("out of memory at %d rows of %s; at most %d from now", num_rows_of(part), model, cost.row_budget)
        smaller = smaller_parts(part, error)
        if smaller:
            self._metrics.bisected_batches.labels(model).inc()
            return smaller
        if isinstance(error, WrongAnswer):
            self._metrics.wrong_answers.labels(model).inc()
        self._outcomes.fail(part, error)
        if isinstance(error, DeviceLost):
            self._died = True
            self._fail_everyone(EngineError, "this replica lost its device")
        return []

    def _expire(self) -> None:
        """The alarm rang: give their outcome to all whose deadline has passed, wherever they are."""
        now = self._clock()
        self._expire_queued(now)
        earliest = self._queue.next_expiry_at()
        earliest = math.inf if earliest is None else earliest
        for request, _, _ in self._on_device:
            if not request.answer.done():
                if request.deadline <= now:
                    self._outcomes.expire(request, "in_flight")
                else:
                    earliest = min(earliest, request.deadline)
        self._alarm.set(earliest)

    def _expire_queued(self, now: float) -> None:
        for request in self._queue.expire(now):
            self._outcomes.expire(request, "queued")

    def _fail_everyone(self, error: type[ServeError], detail: str) -> None:
        """Admit nothing more and give everyone who waits this outcome."""
        self._admission.close()
        self._queue.clear()
        self._alarm.cancel()
        for request in self._admission.ongoing:
            request.fail(error, detail)
