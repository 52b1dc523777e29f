"""The settings of the policy in seconds, one class for the queue and one for admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from serve.batching.cost import ContextCost
from serve.settings import BatchingSettings

BULK_COST_FACTOR = 4.0
"""A batch with bulk rows may take this many times the cost of one row, where no bound is set.

A compromise: where costs grow with the rows, a batch of four times a row's cost is three quarters as efficient as an
endless one, and an interactive row, whose own batch takes one to two times that cost, waits for one such batch at most.
Simulated on the demo model's costs at 40 % of capacity, bulk gets 83 % of the room left and interactive p99 is 1.5
times what it is alone (factor 3: 71 % and 1.2; factor 8: 93 % and 2.7; `python -m benchmarks.simulation`).
"""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The policy's settings, in seconds; see `BatchingSettings`.

    Attributes:
        max_bulk_batch_s: None stands for `BULK_COST_FACTOR` times one row of the context.
        max_turn_delay_s: when turns are decided, a deadline counts as at most this long after its request's arrival.
            Otherwise a caller with an hour to wait would wait that hour behind contexts with shorter deadlines.
    """

    max_queue_delay_s: float = 0.0
    max_bulk_batch_s: float | None = None
    max_bulk_wait_s: float = 1.0
    max_turn_delay_s: float = 30.0

    @classmethod
    def of(cls, settings: BatchingSettings) -> Self:
        """The limits that the settings ask for."""
        bound_ms = settings.max_bulk_batch_ms
        return cls(
            max_queue_delay_s=settings.max_queue_delay_ms / 1e3,
            max_bulk_batch_s=None if bound_ms is None else bound_ms / 1e3,
            max_bulk_wait_s=settings.max_bulk_wait_ms / 1e3,
            max_turn_delay_s=settings.default_timeout_ms / 1e3,
        )

    def max_bulk_rows(self, cost: ContextCost, bulk_ahead_s: float = 0.0) -> int:
        """Most rows of a batch with bulk rows, behind bulk rows that take `bulk_ahead_s`.

        None where that is less than half of what a free device would get: the batches of bulk callers would be small.
        """
        bound_s = BULK_COST_FACTOR * cost.predict(1) if self.max_bulk_batch_s is None else self.max_bulk_batch_s
        most = cost.rows_within(bound_s)
        if not bulk_ahead_s:
            return most
        left_s = bound_s - bulk_ahead_s
        rows = cost.rows_within(left_s)
        return rows if 2 * bulk_ahead_s <= bound_s and 2 * rows >= most and cost.predict(rows) <= left_s else 0


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Limits on ongoing requests, queued and in flight together; see `BatchingSettings`.

    Attributes:
        max_rows: None bounds the waiting work by `max_backlog_s` instead.
        max_backlog_s: for contexts without a bound of their own.
    """

    max_requests: int
    max_rows: int | None = None
    max_backlog_s: float = 30.0

    @classmethod
    def of(cls, settings: BatchingSettings) -> Self:
        """The limits that the settings ask for."""
        return cls(settings.ongoing_requests_limit, settings.max_ongoing_rows, settings.default_timeout_ms / 1e3)
