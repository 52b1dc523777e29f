"""Admitted requests and their outcomes. On the event loop, after the next batch has begun on the device.

A request gets its outcome from the first of: its answer, a fault of the engine, its deadline, a shutdown, the
disconnect of its caller. Every later one finds it done and leaves it alone. `Outcomes.finish` is the only place that
ends a request: it gives back what the request held, then calls its `on_outcome`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from serve.batching.cost import CostModel
from serve.batching.fifo import Slice, count_rows
from serve.batching.queue import BatchQueue
from serve.batching.recovery import WrongAnswer, smaller_parts
from serve.core import FittedContext, Matrix, ModelReference, Prediction, Priority, Timing
from serve.core.errors import DeadlineExceeded, DeviceLost, EngineError, OutOfMemory, ServeError
from serve.telemetry.recorder import ComputedBatch, EngineFault, ExpiryStage, Recorder

if TYPE_CHECKING:
    from serve.batching.device import Computed

_log = logging.getLogger(__name__)

Outcome: TypeAlias = Prediction | ServeError
"""How a request ended. Each request gets an error of its own, because callers add tracebacks to it."""


class Asked(Protocol):
    """What the batcher reads of a request beside its rows: a `PredictRequest`, or one of another process."""

    @property
    def model(self) -> ModelReference:
        """Whose predictions; `name` is in metrics and log lines."""

    @property
    def arrived_at(self) -> float:
        """When the server had its headers, in seconds of `time.monotonic`."""

    @property
    def deadline(self) -> float:
        """When its caller gives up, on the same clock."""

    @property
    def priority(self) -> Priority:
        """Which queue its rows wait in."""

    @property
    def request_id(self) -> str:
        """Names it in the log."""


@dataclass(slots=True, eq=False)
class AdmittedRequest:
    """A request in the batcher: see `fifo.QueuedRequest`. Compared and hashed by identity.

    Attributes:
        rows: float64 [rows, features] as encoded by `context`.
        arrived_at: when it was admitted, on the clock of the batcher.
        on_outcome: called once, on the event loop, unless the caller withdraws the request before. It must be quick.
    """

    request: Asked
    context: FittedContext
    rows: Matrix
    arrived_at: float
    on_outcome: Callable[[Outcome], None]
    is_done: bool = field(default=False, init=False)
    """It has its outcome, or was withdrawn."""
    num_rows: int = field(init=False)
    deadline: float = field(init=False)
    priority: Priority = field(init=False)
    num_answered: int = field(default=0, init=False)
    """Rows whose outputs have come."""
    _outputs: Matrix | None = field(default=None, init=False)
    _queue_ms: float = field(default=0.0, init=False)
    _compute_ms: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.num_rows = len(self.rows)
        self.deadline = self.request.deadline
        self.priority = self.request.priority

    @property
    def model(self) -> str:
        """Name of the model, for metrics and log lines."""
        return self.request.model.name

    def take(
        self, start: int, outputs: Matrix, batch_rows: int, started_at: float, batch_s: float
    ) -> Prediction | None:
        """Take the outputs of the rows from `start` on, of a batch that began at `started_at`.

        Returns the whole answer with the last rows of the request, None before. `outputs` must be the request's own
        copy: the answer outlives the batch, and the engine may use the memory of a batch again.
        """
        if not self.num_answered:
            self._queue_ms = 1e3 * (started_at - self.arrived_at)
        self._compute_ms += 1e3 * batch_s
        self.num_answered += len(outputs)
        if len(outputs) < self.num_rows:
            if self._outputs is None:
                self._outputs = np.empty((self.num_rows, outputs.shape[1]))
            self._outputs[start : start + len(outputs)] = outputs
            outputs = self._outputs
        if self.num_answered < self.num_rows:
            return None
        return Prediction(outputs, batch_rows, Timing(self._queue_ms, self._compute_ms))


def settle_future(answer: asyncio.Future[Prediction], outcome: Outcome) -> None:
    """Set the outcome of a request as that of a future, unless its task was cancelled before."""
    if answer.done():
        return
    if isinstance(outcome, ServeError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


Slices = Sequence[Slice[AdmittedRequest]]


@dataclass(slots=True, eq=False)
class CutBatch:
    """A batch from its cut until its last part has ended; it is one part unless it fails.

    Attributes:
        faults: for each part that failed for good, its number of requests and the cause.
    """

    slices: Slices
    num_parts: int = 1
    faults: list[tuple[int, BaseException]] = field(default_factory=list)


class Outcomes:
    """Gives requests their outcomes, and reports each batch to the cost model and the recorder.

    Args:
        release: gives back what a request held in admission.
        lose: called when the device is lost; fails every ongoing request.
    """

    def __init__(
        self,
        queue: BatchQueue[AdmittedRequest],
        cost: CostModel,
        recorder: Recorder,
        release: Callable[[AdmittedRequest], None],
        lose: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._cost = cost
        self._recorder = recorder
        self._release = release
        self._lose = lose

    def finish(self, request: AdmittedRequest, outcome: Outcome) -> None:
        """Give a request its outcome; nothing where it has one. None of its rows may wait in the queue any more."""
        if request.is_done:
            return
        request.is_done = True
        self._release(request)
        try:
            request.on_outcome(outcome)
        except Exception:  # the other requests of the batch still get their outcomes
            _log.exception("request %s: its outcome could not be passed on", request.request.request_id)

    def withdraw(self, request: AdmittedRequest) -> None:
        """The caller has left: its rows are not computed if they still wait. Nothing where it has its outcome."""
        if not request.is_done:
            request.is_done = True
            self._queue.remove(request)
            self._release(request)

    def conclude(self, batch: CutBatch, part: Slices, computed: Computed, cost_s: float) -> list[Slices]:
        """Leave the answers of a part to be settled, or return the smaller parts that are tried after its failure.

        A batch whose last part has ended without success is logged.
        """
        smaller = self._conclude(batch, part, computed, cost_s)
        batch.num_parts += len(smaller) - 1
        if not batch.num_parts:
            self._log_faults(batch)
        return smaller

    def drop(self, batch: CutBatch) -> None:
        """A part is not computed, because all its requests have their outcomes."""
        batch.num_parts -= 1
        if not batch.num_parts:
            self._log_faults(batch)

    def _conclude(self, batch: CutBatch, part: Slices, computed: Computed, cost_s: float) -> list[Slices]:
        error = computed.error
        if error is None:
            asyncio.get_running_loop().call_soon(self.settle, part, computed, cost_s)
            return []
        model = part[0].request.model
        if isinstance(error, OutOfMemory):
            self._recorder.failed(model, EngineFault.OUT_OF_MEMORY)
            cost, num_rows = self._cost.of(part[0].request.context), count_rows(part)
            cost.lower_budget(num_rows, computed.ended_at)
            _log.error("out of memory at %d rows of %s; at most %d from now", num_rows, model, cost.row_budget)
        smaller = smaller_parts(part, error)
        if smaller:
            self._recorder.failed(model, EngineFault.BISECTED)
            return smaller
        if isinstance(error, WrongAnswer):
            self._recorder.failed(model, EngineFault.WRONG_ANSWER)
        self._fail(batch, part, error)
        if isinstance(error, DeviceLost):
            self._lose()
        return []

    def settle(self, part: Slices, computed: Computed, cost_s: float) -> None:
        """Hand out the answers of a batch that succeeded and kept the next one waiting for `cost_s`."""
        try:
            good = self._fail_non_finite(part, computed)
            queue_s = self._answer(part, computed, good)
            self._report(part, computed, cost_s, queue_s)
        except Exception as error:
            self._fail_answered(part, part, error)

    def _fail(self, batch: CutBatch, part: Slices, error: BaseException) -> None:
        """The device failed on these rows; the remaining rows of their requests are not computed."""
        batch.faults.append((len(part), error))
        for request, _, _ in part:
            self._queue.remove(request)
            self.finish(request, EngineError("the model could not answer; the cause is in the server's log"))

    def _fail_answered(self, part: Slices, bad: Slices, error: Exception) -> None:
        """Fail requests of a part that the device answered."""
        answered = CutBatch(part)
        self._fail(answered, bad, error)
        self._log_faults(answered)

    def _log_faults(self, batch: CutBatch) -> None:
        """Write one log record for a batch with failed parts, with the first cause: one fault fails many alike."""
        if batch.faults:
            _log.error(
                "in a batch of %d requests, %d rows, the engine failed on %d requests",
                len(batch.slices), count_rows(batch.slices), sum(count for count, _ in batch.faults),
                exc_info=batch.faults[0][1],
            )  # fmt: skip

    def expire(self, request: AdmittedRequest, stage: ExpiryStage) -> None:
        """The deadline of a request has passed."""
        if not request.is_done:
            self._recorder.expired(request.model, stage)
            asked = request.request
            limit_ms = 1e3 * (asked.deadline - asked.arrived_at)
            self._queue.remove(request)
            self.finish(request, DeadlineExceeded(f"no answer within the {limit_ms:.0f} ms that the request had"))

    def _fail_non_finite(self, part: Slices, computed: Computed) -> Sequence[bool]:
        """Fail the requests with an answer that is not a finite number; for each slice, whether all of its are.

        A caller would take such an answer for a decision, and the rows beside it are right.
        """
        assert computed.outputs is not None
        is_finite = np.isfinite(computed.outputs)
        if is_finite.all():
            return [True] * len(part)
        ends = np.cumsum([stop - start for _, start, stop in part])
        good = [bool(rows.all()) for rows in np.split(is_finite, ends[:-1])]
        self._recorder.failed(part[0].request.model, EngineFault.NON_FINITE_ANSWER)
        bad = [piece for piece, is_good in zip(part, good, strict=True) if not is_good]
        self._fail_answered(part, bad, EngineError("the engine answered with NaN or infinity"))
        return good

    def _answer(self, part: Slices, computed: Computed, good: Sequence[bool]) -> list[float]:
        """Give each request its own rows; the seconds that each request new to the device had waited."""
        outputs, started_at, batch_s = computed.outputs, computed.started_at, computed.seconds
        assert outputs is not None
        queue_s: list[float] = []
        row, batch_rows = 0, len(outputs)
        for (request, start, stop), is_good in zip(part, good, strict=True):
            following = row + stop - start
            if is_good and not request.is_done:
                if not request.num_answered:
                    queue_s.append(started_at - request.arrived_at)
                answer = request.take(start, outputs[row:following].copy(), batch_rows, started_at, batch_s)
                if answer is not None:
                    self.finish(request, answer)
            row = following
        return queue_s

    def _report(self, part: Slices, computed: Computed, cost_s: float, queue_s: list[float]) -> None:
        num_rows = count_rows(part)
        cost = self._cost.of(part[0].request.context)
        predicted_s = cost.predict(num_rows)
        ratio = cost_s / predicted_s if predicted_s else None
        cost.learn(num_rows, cost_s, computed.ended_at)
        model = part[0].request.model
        self._recorder.computed(ComputedBatch(model, num_rows, len(part), computed.seconds, ratio, queue_s))
