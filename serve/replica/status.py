"""What one replica says of itself at one moment: state, models, queue, device and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve.core import ServerState


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A served model.

    Attributes:
        backend: what computes its answers; see `FittedContext`.
        default_timeout_ms: time from arrival to deadline of a request that states no timeout.
        max_batch_rows: most rows of one batch now; lower than the setting after the device ran out of memory.
        batch_ms: predicted milliseconds of one batch, by row bucket, as learned from the batches so far.
    """

    name: str
    version: str
    checkpoint: str
    backend: str
    num_context_rows: int
    default_timeout_ms: float
    max_batch_rows: int
    batch_ms: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Requests that are admitted and not answered.

    Attributes:
        num_queued_rows: rows that wait for a batch, by priority.
        num_in_flight_requests: requests in the batch on the device, and in the one prepared behind it.
    """

    num_queued_requests: int
    num_queued_rows: Mapping[str, int]
    num_in_flight_requests: int
    num_ongoing_requests: int
    num_ongoing_rows: int


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """The device of the engine.

    Attributes:
        name: `cpu` or `cuda:N`.
        is_hung: its batch takes far longer than expected; the replica is not ready until the batch ends.
        is_lost: the engine is gone for good; the replica must be replaced.
        gpu_memory_used_bytes: by all processes; None without a GPU, or where its driver does not say.
        gpu_utilization_ratio: from 0 to 1, by all processes; None likewise.
    """

    name: str
    is_hung: bool
    is_lost: bool
    gpu_memory_used_bytes: float | None
    gpu_utilization_ratio: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """One replica at one moment.

    Attributes:
        version: of the server.
        is_ready: requests are answered.
        uptime_s: seconds since the replica was made.
        models: by name.
    """

    version: str
    state: ServerState
    is_ready: bool
    uptime_s: float
    models: tuple[ModelStatus, ...]
    queue: QueueStatus
    device: DeviceStatus
