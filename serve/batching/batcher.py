"""The asyncio shell of batching: it waits, calls the policy, runs the device thread and hands out the answers.

Theory of operation
-------------------
Everything but the engine runs on one event loop, so nothing here needs a lock. One task (`_run`) repeats: sleep until
the queue has a batch to give, run it on the single device thread, leave its answers to be settled. It cuts a batch
only when the device is free, so at most one is on the device and whatever queues meanwhile rides in the next. Answers
are settled by a callback *after* the task went on to start the next batch: the device does not wait for 256 futures.

Every admitted request has exactly one outcome, and one place gives back what it holds: the `finally` of `submit`. Its
future is set by the first of: its answer, an engine fault, `close`, its own caller's cancellation. Whoever comes later
finds it done and leaves it. A cancelled request therefore cannot harm its batch-mates: still queued it is taken out,
on the device its rows are computed and dropped.

An engine fault is shared by the requests of its batch, logged once, and its text goes no further. What runs on the
device thread hands its exceptions over as values, because some (StopIteration, SystemExit) cannot cross a future.
If `_run` itself should ever fail, that is our own bug: it is logged as critical, everyone waiting gets an EngineError
and nothing more is admitted (`failed`), rather than letting callers wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from serve.batching.admission import AdmissionController
from serve.batching.queue import BatchQueue
from serve.config import BatchingSettings
from serve.core import Batch, Engine, FittedContext, Matrix, Prediction, Timing
from serve.errors import Draining, EngineError, ServeError
from serve.metrics import Metrics

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """One admitted request; see `queue.QueuedRequest`."""

    context: FittedContext
    rows: Matrix
    model: str
    arrived_at: float
    answer: asyncio.Future[Prediction]

    @property
    def num_rows(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class _Computed:
    """What the device thread made of a batch: the engine's answer as it came, or what it raised."""

    outputs: Matrix | None
    error: BaseException | None
    started_at: float
    ended_at: float


class Batcher:
    """Joins requests into batches for one engine. Lives on one event loop: `start`, then the rest, last `close`."""

    def __init__(
        self,
        engine: Engine,
        settings: BatchingSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._admission = AdmissionController(settings.max_ongoing_requests, settings.max_batch_rows)
        self._queue: BatchQueue[_Request] = BatchQueue(settings.max_batch_rows, settings.max_queue_delay_ms / 1e3)
        self._ongoing: set[_Request] = set()
        self._on_device: list[_Request] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._device_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._closed = False
        self.failed = False
        """The batching task died of a bug; nothing is answered any more, and the replica should be replaced."""
        metrics.queued_requests.set_function(lambda: self._queue.num_requests)
        metrics.queued_rows.set_function(lambda: self._queue.num_rows)
        metrics.in_flight_requests.set_function(lambda: len(self._on_device))

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
        value, error = await asyncio.get_running_loop().run_in_executor(self._device_thread, _call, fn)
        if error is not None:
            raise error
        return cast(T, value)

    async def submit(self, context: FittedContext, rows: Matrix, *, model: str) -> Prediction:
        """Answer one request's rows, in company; cancelling the caller drops the request.

        Args:
            rows: float64 [rows, features] as encoded by `context`; 1 to `max_batch_rows` rows.
            model: the metrics' label.

        Raises:
            Overloaded, Draining: refused, nothing was done.
            EngineError: the batch failed on the device.
            Draining: also where `close` came before the answer.
        """
        assert self._task is not None, "start before submit"
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        request = _Request(context, rows, model, self._clock(), answer)
        permit = self._admission.acquire(len(rows))
        self._ongoing.add(request)
        self._idle.clear()
        try:
            self._queue.add(request)
            self._wake.set()
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # counts as seen even where a cancellation overtook it
            self._queue.remove(request)
            self._ongoing.remove(request)
            self._admission.release(permit)
            if not self._ongoing:
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
        if self._ongoing:
            _log.warning("closing with %d requests unanswered", len(self._ongoing))
        self._fail_everyone(Draining, "this replica shut down before the answer")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._device_thread.shutdown)

    async def _run(self) -> None:
        try:
            while True:
                batch = await self._next_batch()
                self._on_device = batch
                computed = await self.run_on_device(functools.partial(self._compute, batch))
                self._on_device = []
                asyncio.get_running_loop().call_soon(self._settle, batch, computed)
        except Exception:
            self.failed = True
            _log.critical("the batching task died; this replica answers nothing more", exc_info=True)
            self._fail_everyone(EngineError, "this replica failed")
        finally:
            self._on_device = []
            self._fail_everyone(Draining, "this replica stopped before the answer")

    async def _next_batch(self) -> list[_Request]:
        """Sleep until there is a batch; no timer while nothing waits."""
        while True:
            self._wake.clear()
            now = self._clock()
            # A cancelled caller's task may not yet have run to take its request out.
            if batch := [request for request in self._queue.cut(now) if not request.answer.done()]:
                return batch
            cut_at = self._queue.next_cut_at()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if cut_at is None else cut_at - now):
                    await self._wake.wait()

    def _compute(self, batch: list[_Request]) -> _Computed:
        """On the device thread: join the rows and run the engine."""
        outputs, error = None, None
        started_at = self._clock()
        try:
            rows = np.concatenate([request.rows for request in batch])
            outputs = self._engine.predict(Batch(batch[0].context, rows))
        except BaseException as raised:
            error = raised
        return _Computed(outputs, error, started_at, self._clock())

    def _settle(self, batch: list[_Request], computed: _Computed) -> None:
        """Give every request of a batch its outcome."""
        error = computed.error
        if error is None:
            try:
                self._answer(batch, _checked(batch, computed.outputs), computed)
                self._observe(batch, computed)
            except Exception as raised:
                error = raised
        if error is not None:
            num_rows = sum(request.num_rows for request in batch)
            _log.error("a batch of %d requests, %d rows, failed", len(batch), num_rows, exc_info=error)
            _fail(batch, EngineError, "the model could not answer; the cause is in the server's log")

    def _answer(self, batch: list[_Request], outputs: Matrix, computed: _Computed) -> None:
        compute_ms = 1e3 * (computed.ended_at - computed.started_at)
        start = 0
        for request in batch:
            stop = start + request.num_rows
            if not request.answer.done():
                timing = Timing(1e3 * (computed.started_at - request.arrived_at), compute_ms)
                # A copy: the answer outlives the batch, whose memory the engine may use again.
                request.answer.set_result(Prediction(outputs[start:stop].copy(), len(outputs), timing))
            start = stop

    def _observe(self, batch: list[_Request], computed: _Computed) -> None:
        batch_s = computed.ended_at - computed.started_at
        self._admission.learn(batch_s)
        model = batch[0].model
        self._metrics.batch_seconds.labels(model).observe(batch_s)
        self._metrics.batch_rows.labels(model).observe(sum(request.num_rows for request in batch))
        self._metrics.batch_requests.labels(model).observe(len(batch))
        for request in batch:
            self._metrics.queue_seconds.labels(request.model).observe(computed.started_at - request.arrived_at)

    def _fail_everyone(self, error: type[ServeError], detail: str) -> None:
        """Admit nothing more and give everyone who waits this outcome."""
        self._admission.close()
        self._queue.clear()
        _fail(self._ongoing, error, detail)


def _call(fn: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return fn(), None
    except BaseException as error:
        return None, error


def _checked(batch: list[_Request], outputs: Matrix | None) -> Matrix:
    """Rows in = rows out, or nobody can be told which answer is whose."""
    expected = (sum(request.num_rows for request in batch), batch[0].context.num_outputs)
    if not isinstance(outputs, np.ndarray) or outputs.shape != expected:
        raise ValueError(f"the engine answered {getattr(outputs, 'shape', outputs)!r} where {expected} was due")
    return outputs


def _fail(requests: Iterable[_Request], error: type[ServeError], detail: str) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error(detail))
