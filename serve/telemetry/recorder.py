"""The events that a replica reports, and the `Recorder` that receives them.

Policy, predictor and doors report; they hold no metrics object. Every event is reported in one place of the code, so
that each request and each refusal is counted once. All events of a replica come from its event loop.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve.core import ModelDefinition, Priority, ServerState
from serve.telemetry.nvml import Gpu


class EngineFault(enum.StrEnum):
    """A fault of the engine on one batch."""

    BISECTED = "bisected"
    """The batch failed and was tried again in two parts."""
    OUT_OF_MEMORY = "out_of_memory"
    """The device had no memory for the rows of the batch."""
    WRONG_ANSWER = "wrong_answer"
    """The engine answered with another number of rows or outputs."""
    NON_FINITE_ANSWER = "non_finite_answer"
    """Among the answers was NaN or infinity."""


class ExpiryStage(enum.StrEnum):
    """Where a request was when its deadline passed."""

    QUEUED = "queued"
    IN_FLIGHT = "in_flight"


@dataclass(frozen=True, slots=True)
class ComputedBatch:
    """A batch that the device answered.

    Attributes:
        model: name of the model.
        num_rows: query rows of all requests in it, without padding.
        num_requests: requests with rows in it.
        device_s: seconds on the device thread.
        cost_ratio: measured over predicted cost; None where nothing had been predicted.
        queue_s: for each request whose first rows were in this batch, the seconds from its admission to the start.
    """

    model: str
    num_rows: int
    num_requests: int
    device_s: float
    cost_ratio: float | None
    queue_s: Sequence[float]


class QueueDepth(Protocol):
    """The present depth of the queue, read whenever a gauge is read."""

    @property
    def num_queued_requests(self) -> int:
        """Requests that wait for a batch."""

    @property
    def num_in_flight_requests(self) -> int:
        """Requests in the batches in flight."""

    def num_queued_rows(self, priority: Priority) -> int:
        """Rows that wait, of requests of this priority."""


class Recorder:
    """Receives the events of one replica, and keeps none: an implementation overrides the events that it needs.

    Each method must be quick and must not raise.
    """

    def watch_queue(self, queue: QueueDepth) -> None:
        """From now on, the queue may be asked for its depth."""

    def watch_gpu(self, device: str, gpu: Gpu) -> None:
        """From now on, the GPU `cuda:N` may be asked for its memory and load."""

    def state_changed(self, state: ServerState) -> None:
        """The replica entered another state."""

    def model_ready(self, model: ModelDefinition, device: str, backend: str) -> None:
        """A model passed its checks and is served; `backend` is that of its `FittedContext`."""

    def refused(self, model: str, reason: str) -> None:
        """A request was refused: `reason` is that of `errors.Overloaded`, or `too_short` for DeadlineTooShort."""

    def computed(self, batch: ComputedBatch) -> None:
        """The device answered a batch."""

    def failed(self, model: str, fault: EngineFault) -> None:
        """The engine failed on a batch."""

    def expired(self, model: str, stage: ExpiryStage) -> None:
        """The deadline of an admitted request passed before its answer."""

    def answered(self, model: str, outcome: str, seconds: Sequence[float]) -> None:
        """Requests have this outcome: `ok` or the code of an error; for each, the seconds since its arrival."""

    def watch_connections(self, count: Callable[[], int]) -> None:
        """From now on, `count` may be called for the number of open connections."""

    def connection_ended(self, reason: str) -> None:
        """The server ended a connection: `reason` is the code of an error, or `unread_answer`."""

    def loop_lagged(self, seconds: float) -> None:
        """The event loop ran a task so much later than it was due."""


class RecorderGroup(Recorder):
    """Passes every event to several recorders."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)

    def watch_queue(self, queue: QueueDepth) -> None:
        for recorder in self._recorders:
            recorder.watch_queue(queue)

    def watch_gpu(self, device: str, gpu: Gpu) -> None:
        for recorder in self._recorders:
            recorder.watch_gpu(device, gpu)

    def state_changed(self, state: ServerState) -> None:
        for recorder in self._recorders:
            recorder.state_changed(state)

    def model_ready(self, model: ModelDefinition, device: str, backend: str) -> None:
        for recorder in self._recorders:
            recorder.model_ready(model, device, backend)

    def refused(self, model: str, reason: str) -> None:
        for recorder in self._recorders:
            recorder.refused(model, reason)

    def computed(self, batch: ComputedBatch) -> None:
        for recorder in self._recorders:
            recorder.computed(batch)

    def failed(self, model: str, fault: EngineFault) -> None:
        for recorder in self._recorders:
            recorder.failed(model, fault)

    def expired(self, model: str, stage: ExpiryStage) -> None:
        for recorder in self._recorders:
            recorder.expired(model, stage)

    def answered(self, model: str, outcome: str, seconds: Sequence[float]) -> None:
        for recorder in self._recorders:
            recorder.answered(model, outcome, seconds)

    def watch_connections(self, count: Callable[[], int]) -> None:
        for recorder in self._recorders:
            recorder.watch_connections(count)

    def connection_ended(self, reason: str) -> None:
        for recorder in self._recorders:
            recorder.connection_ended(reason)

    def loop_lagged(self, seconds: float) -> None:
        for recorder in self._recorders:
            recorder.loop_lagged(seconds)
