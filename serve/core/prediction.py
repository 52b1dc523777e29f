"""The answer to one request, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass

from serve.core.engine import Matrix


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one request went.

    Attributes:
        queue_ms: from admission to the start of its first batch.
        compute_ms: time on the device, summed over the batches that held its rows.
    """

    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one request.

    Attributes:
        outputs: float64 [rows, outputs] for the request's own rows, in its order.
        batch_rows: rows of its batch, of all callers together; of its last batch where the request was split.
    """

    outputs: Matrix
    batch_rows: int
    timing: Timing
