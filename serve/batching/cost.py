"""The cost of batches: seconds by context and row bucket, seeded by the warm-up and learned from every batch since.

Theory of operation
-------------------
Batches are padded to a few shapes, the row buckets, so the time of a batch is a property of its bucket. Each bucket has
its own estimate: the measured seconds, in which newer batches count more. A bucket without a measurement is filled in
by `a + b * rows`, the least-squares line through the measured ones. The warm-up measures every bucket, so this serves
contexts that came without one. Where nothing was measured a prediction is 0, which refuses no request.

What is always true:
- One strange measurement moves an estimate by at most a factor of 1.6 (`_MAX_STRANGENESS`), so that a machine that
  stalled once does not refuse its callers for minutes. A lasting change is still learned within ten batches.
- An estimate is held per context *object*. `CostModel` keeps the object alive, so its identity stays valid.

The row budget is held here too, because only running batches can tell it: the most rows of this context that fit into
the memory of the device. It starts at the largest bucket, and running out of memory lowers it. The cause may have been
another process for a moment, or this batch for good. So a budget that batches have filled for a while is tried one
bucket higher, and each failed trial doubles the wait until the next.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from serve.core import FittedContext, row_buckets

_NEWEST_WEIGHT = 0.2
"""Weight of the newest batch in an estimate: about the last ten batches count."""

_MAX_STRANGENESS = 4.0
"""A measurement counts as at most this many times the estimate, and at least as this fraction of it."""

_FIRST_TRIAL_S, _LAST_TRIAL_S = 60.0, 3_600.0
"""How long a lowered budget holds before a larger one is tried: the first time, and at most."""

_SHORTEST_S = 1e-6
"""No batch takes less. An estimate of 0 could not grow by factors."""


class ContextCost:
    """The costs of one context's batches."""

    __slots__ = (
        "_buckets", "_measured", "_predicted", "_trial_at", "_trial_s",
        "context", "learned_at", "row_budget", "typical_s",
    )  # fmt: skip

    def __init__(self, context: FittedContext, buckets: Sequence[int]) -> None:
        self.context = context
        self.row_budget = buckets[-1]
        """Most rows in one batch."""
        self.learned_at = -math.inf
        """When a batch of it was last measured."""
        self.typical_s = 0.0
        """Seconds of recent batches, whatever their rows; 0 before the first."""
        self._trial_at, self._trial_s = -math.inf, _FIRST_TRIAL_S
        self._buckets = tuple(buckets)
        self._measured: list[float | None] = [None] * len(buckets)
        self._predicted = [0.0] * len(buckets)

    def predict(self, num_rows: int) -> float:
        """Seconds of one batch of 1 to `row_budget` rows; 0 while nothing was measured."""
        return self._predicted[self._index(num_rows)]

    def predict_all(self, num_rows: int, batch_rows: int) -> float:
        """Seconds of `num_rows` in batches of `batch_rows`, one after the other."""
        num_full, rest = divmod(num_rows, batch_rows)
        seconds = num_full * self.predict(batch_rows) if num_full else 0.0
        return seconds + self.predict(rest) if rest else seconds

    def rows_within(self, seconds: float) -> int:
        """The most rows whose batch is predicted to take at most `seconds`; at least 1, at most the budget."""
        for bucket, predicted in zip(reversed(self._buckets), reversed(self._predicted), strict=True):
            if predicted <= seconds:
                return min(bucket, self.row_budget)
        return 1

    def padded(self, num_rows: int) -> int:
        """The most rows that cost no more than `num_rows`, because they run in the same bucket; within the budget."""
        return min(self._buckets[self._index(num_rows)], self.row_budget)

    def efficient_batch_rows(self, num_rows: int) -> int:
        """How many of `num_rows` to run at once: all, or a full row bucket if that and the rest are done sooner.

        Just above the size of a bucket most of the next one is padding. Where costs grow with the rows, all of 140
        rows are answered sooner as 128 and 12 than as 256.
        """
        index = self._index(num_rows)
        if not index or num_rows >= self._buckets[index]:
            return num_rows
        lower = self._buckets[index - 1]
        in_two = self._predicted[index - 1] + self.predict(num_rows - lower)
        return lower if in_two < self._predicted[index] else num_rows

    def by_rows(self) -> dict[int, float]:
        """The predicted seconds of every row bucket within the budget."""
        pairs = zip(self._buckets, self._predicted, strict=True)
        return {rows: seconds for rows, seconds in pairs if rows <= self.row_budget}

    def learn(self, num_rows: int, seconds: float, now: float) -> None:
        """Take the time of one batch into the estimate of its bucket, and into the typical time."""
        self.measure(num_rows, seconds, now)
        is_lowered = self.row_budget < self._buckets[-1]
        if is_lowered and now >= self._trial_at and self._index(num_rows) >= self._index(self.row_budget):
            self._raise_budget(now)
        self.typical_s += _NEWEST_WEIGHT * (self.predict(num_rows) - self.typical_s)

    def measure(self, num_rows: int, seconds: float, now: float) -> None:
        """Take the time of a batch without callers, such as one of the warm-up."""
        index = self._index(num_rows)
        new = max(seconds, _SHORTEST_S)
        old = self._measured[index]
        if old is not None:
            new = old + _NEWEST_WEIGHT * (min(max(new, old / _MAX_STRANGENESS), old * _MAX_STRANGENESS) - old)
        self._measured[index] = self._predicted[index] = new
        self.learned_at = now
        if None in self._measured:
            self._fill_in()

    def lower_budget(self, num_rows: int, now: float) -> None:
        """The row bucket of `num_rows` did not fit into the memory."""
        self.row_budget = min(self.row_budget, max(1, self._buckets[self._index(num_rows)] // 2))
        self._trial_at = now + self._trial_s
        self._trial_s = min(2 * self._trial_s, _LAST_TRIAL_S)

    def _raise_budget(self, now: float) -> None:
        """To the next bucket, and on from there in the same time."""
        self.row_budget = self._buckets[bisect_right(self._buckets, self.row_budget)]
        self._trial_at = now + self._trial_s

    def _index(self, num_rows: int) -> int:
        return min(bisect_left(self._buckets, num_rows), len(self._buckets) - 1)

    def _fill_in(self) -> None:
        known = [(rows, s) for rows, s in zip(self._buckets, self._measured, strict=True) if s is not None]
        fixed, per_row = _fit_line(known)
        for index, measured in enumerate(self._measured):
            if measured is None:
                self._predicted[index] = fixed + per_row * self._buckets[index]


class CostModel:
    """The costs of every context of one device."""

    def __init__(self, max_batch_rows: int) -> None:
        self._buckets = row_buckets(max_batch_rows)
        self._costs: dict[int, ContextCost] = {}

    def of(self, context: FittedContext) -> ContextCost:
        """The costs of this context; all unknown for a new one."""
        cost = self._costs.get(id(context))
        if cost is None:
            cost = self._costs[id(context)] = ContextCost(context, self._buckets)
        return cost

    def seed(self, context: FittedContext, seconds_by_rows: Mapping[int, float], now: float) -> ContextCost:
        """Begin a context with the measurements of its warm-up: seconds of every row bucket of the engine."""
        cost = self._costs[id(context)] = ContextCost(context, sorted(seconds_by_rows))
        for num_rows, seconds in seconds_by_rows.items():
            cost.measure(num_rows, seconds, now)
        return cost


def _fit_line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(a, b) of the line `a + b * rows` nearest to the points, neither below 0; flat through a single point."""
    mean_rows = sum(rows for rows, _ in points) / len(points)
    mean_s = sum(seconds for _, seconds in points) / len(points)
    spread = sum((rows - mean_rows) ** 2 for rows, _ in points)
    if not spread:
        return mean_s, 0.0
    per_row = max(0.0, sum((rows - mean_rows) * (seconds - mean_s) for rows, seconds in points) / spread)
    fixed = mean_s - per_row * mean_rows
    return (fixed, per_row) if fixed >= 0 else (0.0, mean_s / mean_rows)
