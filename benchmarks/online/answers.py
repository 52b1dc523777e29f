"""What the server's own answers say of their batches and of the time that they took: the `timing_ms` and `batch_rows`.

Only answers of the native protocol say that; answers without these fields are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.percentiles import rounded


@dataclass
class AnswerTimes:
    """Sums over answers, so that several processes' shares can be added up. Times are in milliseconds."""

    answers: int = 0
    queue: float = 0.0
    compute: float = 0.0
    total: float = 0.0
    outside: float = 0.0
    """Latency less the server's total: network, kernel, HTTP parsing before the server's clock starts, send lag."""
    rows: int = 0
    batch_rows: float = 0.0
    """Of each answer's batch."""
    batch_rows_of_rows: float = 0.0
    """The same, once for each row of the answer."""
    batches: float = 0.0
    """Each answer stands for its share of one batch: its own rows divided by the batch's rows."""
    max_batch_rows: float = 0.0

    def add(self, answer: Any, latency_ms: float) -> None:
        """Count one parsed answer; does nothing where it does not state its times."""
        if not isinstance(answer, Mapping) or "timing_ms" not in answer or "batch_rows" not in answer:
            return
        timing, rows, batch_rows = answer["timing_ms"], len(answer["predictions"]), float(answer["batch_rows"])
        self.answers += 1
        self.queue += timing["queue"]
        self.compute += timing["compute"]
        self.total += timing["total"]
        self.outside += latency_ms - timing["total"]
        self.rows += rows
        self.batch_rows += batch_rows
        self.batch_rows_of_rows += rows * batch_rows
        self.batches += rows / batch_rows
        self.max_batch_rows = max(self.max_batch_rows, batch_rows)

    def merge(self, other: AnswerTimes) -> None:
        """Add another process's sums."""
        largest = max(self.max_batch_rows, other.max_batch_rows)
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        self.max_batch_rows = largest

    def summary(self) -> dict[str, Any]:
        """Means, as JSON has them; None where no answer stated its times.

        `batch_rows.per_batch` is the mean batch, exact where only this load was served. `per_row` and `per_request` are
        the mean size of the batch that a row, a request was in. Large batches hold many requests, so these two are
        larger.
        """
        return {
            "batch_rows": {
                "per_row": _ratio(self.batch_rows_of_rows, self.rows),
                "per_request": _ratio(self.batch_rows, self.answers),
                "per_batch": _ratio(self.rows, self.batches),
                "max": self.max_batch_rows if self.answers else None,
            },
            "server_ms": {
                "queue": _ratio(self.queue, self.answers),
                "compute": _ratio(self.compute, self.answers),
                "total": _ratio(self.total, self.answers),
                # in the server but neither queued nor computed: reading, encoding, writing
                "overhead": _ratio(self.total - self.queue - self.compute, self.answers),
            },
            "outside_ms": _ratio(self.outside, self.answers),
        }


def _ratio(total: float, count: float) -> float | None:
    return rounded(total / count) if count else None
