"""The answer to one request, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass

from serve.core.engine import Matrix


@dataclass(frozen=True, slots=True)
class Timing:
    """Where one request's time went, in milliseconds. `total` is set by whoever saw the request arrive.

    A request in several batches waited until the first of them and was computed in all: `compute` is their sum.
    """

    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One request's answer.

    Attributes:
        outputs: float64 [rows, outputs] for the request's own rows, in its order.
        batch_rows: rows of the batch it rode in, all callers together; of the last one where it was split.
    """

    outputs: Matrix
    batch_rows: int
    timing: Timing
