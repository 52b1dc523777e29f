"""What the check of admission is computed from: the batcher's own state, or a copy of it in another process."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from serve.batching.fifo import QueuedRequest
from serve.core import FittedContext


class Forecast(NamedTuple):
    """Seconds of device time that concern one request.

    Attributes:
        before_s: for the rows that would be served first.
        own_s: for its own rows.
        company_s: by which its batch will grow until it is cut. While an interactive request waits, other requests
            arrive and join its batch, as many as in recent batches. Batches of bulk rows are full already.
    """

    before_s: float
    own_s: float
    company_s: float


class ContextTimes(Protocol):
    """What the check asks of the costs of one context: `cost.ContextCost`, or a copy of it."""

    def predict(self, num_rows: int) -> float:
        """Seconds of one batch."""

    def predict_all(self, num_rows: int, batch_rows: int) -> float:
        """Seconds of `num_rows` in batches of `batch_rows`."""

    def fastest(self, num_rows: int, batch_rows: int) -> float:
        """As `predict_all`, at the lowest cost ever measured."""

    def measured_at(self, num_rows: int) -> float:
        """When such a batch was last measured."""

    def has_run(self, num_rows: int) -> bool:
        """Whether its cost comes from a batch."""


class WaitingWork(Protocol):
    """What the check asks of the queue: `queue.BatchQueue`, or a copy of its state."""

    @property
    def num_rows(self) -> int:
        """Waiting rows."""

    def forecast(self, request: QueuedRequest) -> Forecast:
        """What the device would do before this request, and for it; pessimistic."""

    def seconds_before_turn(self, request: QueuedRequest) -> float:
        """`Forecast.before_s`, exactly."""

    def max_batch_rows(self, request: QueuedRequest, cost: Any) -> int:
        """Most of its rows in one batch."""


class Costs(Protocol):
    """The costs of every context: `cost.CostModel`, or a copy."""

    def of(self, context: FittedContext) -> ContextTimes:
        """Those of one context."""


class DeviceTime(Protocol):
    """What the check asks of the device: `device.BatchWatchdog`, or a copy of its state."""

    def remaining_s(self, now: float) -> float:
        """Seconds until it is free."""
