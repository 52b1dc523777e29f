"""The cost of batches: seconds by context and row bucket, seeded by the warm-up and learned from every batch since.

Theory of operation
-------------------
Batches are padded to a few shapes, the row buckets, so the time of a batch is a property of its bucket. Each bucket has
its own estimate: the measured seconds, in which newer batches count more. A bucket without a measurement is filled in
by `a + b * rows`, the least-squares line through the measured ones. The warm-up measures every bucket, so this serves
contexts that came without one. Where nothing was measured a prediction is 0, which refuses no request.

Other work on the machine only adds time. So high estimates are doubted, and low ones are believed:
- A seed is no higher than a larger bucket's, nor than its rows would take in several batches of a smaller bucket.
- The first batch of a bucket replaces its seed where it took less. Later batches move the estimate step by step.
- A bucket that did not run lately follows the buckets that do. Where those now take a tenth of what they took when it
  was last measured, it is predicted to take a tenth too. A prediction only falls in this way. The measurement is kept,
  and the next batch of the bucket decides between the two.

What is always true:
- One strange measurement raises a prediction by at most a factor of 1.6 (`_MAX_STRANGENESS`), so that a machine that
  stalled once does not refuse its callers for minutes. A lasting change is still learned within ten batches.
- A prediction is never higher than the last estimate that was measured in its bucket.
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

MAX_SEED_ERROR = 50.0
"""A warm-up beside other work, or one that recorded CUDA graphs, may have taken this many times too long."""

_RECENT_BATCHES = 32
"""A bucket that ran within so many batches of its context is predicted by its own measurements alone."""

_FIRST_TRIAL_S, _LAST_TRIAL_S = 60.0, 3_600.0
"""How long a lowered budget holds before a larger one is tried: the first time, and at most."""

_SHORTEST_S = 1e-6
"""No batch takes less. An estimate of 0 could not grow by factors."""


class ContextCost:
    """The costs of one context's batches."""

    __slots__ = (
        "_buckets", "_fastest", "_inferred_at", "_last_batch", "_measured", "_measured_at", "_num_batches",
        "_predicted", "_then", "_trial_at", "_trial_s", "context", "row_budget", "typical_s",
    )  # fmt: skip

    def __init__(self, context: FittedContext, buckets: Sequence[int]) -> None:
        self.context = context
        self.row_budget = buckets[-1]
        """Most rows in one batch."""
        self.typical_s = 0.0
        """Seconds of recent batches, whatever their rows; 0 before the first."""
        self._trial_at, self._trial_s = -math.inf, _FIRST_TRIAL_S
        self._buckets = tuple(buckets)
        self._measured: list[float | None] = [None] * len(buckets)
        self._measured_at = [-math.inf] * len(buckets)
        self._predicted = [0.0] * len(buckets)
        self._fastest = [0.0] * len(buckets)
        self._inferred_at = [math.inf] * len(buckets)
        """The estimate of each bucket when other buckets were last inferred from it."""
        self._num_batches = 0
        self._last_batch = [0] * len(buckets)
        """The number of the last batch of each bucket, counted over all buckets from 1; 0 before the first."""
        self._then = [self._predicted.copy()] * len(buckets)
        """For each bucket the predictions of all buckets at its last measurement."""

    def predict(self, num_rows: int) -> float:
        """Seconds of one batch of 1 to `row_budget` rows; 0 while nothing was measured."""
        return self._predicted[self._index(num_rows)]

    def predict_all(self, num_rows: int, batch_rows: int) -> float:
        """Seconds of `num_rows` in batches of `batch_rows`, one after the other."""
        return self._sum(self._predicted, num_rows, batch_rows)

    def fastest(self, num_rows: int, batch_rows: int) -> float:
        """As `predict_all`, with the lowest estimate that each bucket ever had."""
        return self._sum(self._fastest, num_rows, batch_rows)

    def measured_at(self, num_rows: int) -> float:
        """When the row bucket of `num_rows` was last measured."""
        return self._measured_at[self._index(num_rows)]

    def has_run(self, num_rows: int) -> bool:
        """Whether the bucket's estimate comes from a batch; otherwise from the warm-up, or from other buckets."""
        return self._last_batch[self._index(num_rows)] > 0

    def _sum(self, seconds_by_bucket: Sequence[float], num_rows: int, batch_rows: int) -> float:
        num_full, rest = divmod(num_rows, batch_rows)
        seconds = num_full * seconds_by_bucket[self._index(batch_rows)] if num_full else 0.0
        return seconds + seconds_by_bucket[self._index(rest)] if rest else seconds

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
        self._measure(self._index(num_rows), max(seconds, _SHORTEST_S), now)
        is_lowered = self.row_budget < self._buckets[-1]
        if is_lowered and now >= self._trial_at and self._index(num_rows) >= self._index(self.row_budget):
            self._raise_budget(now)
        self.typical_s += _NEWEST_WEIGHT * (self.predict(num_rows) - self.typical_s)

    def seed(self, seconds: Sequence[float], now: float) -> None:
        """Take the times of the warm-up, one for each bucket."""
        seeds = [max(each, _SHORTEST_S) for each in seconds]
        for index in range(len(seeds) - 2, -1, -1):
            seeds[index] = min(seeds[index], seeds[index + 1])
        for index, rows in enumerate(self._buckets):
            smaller = zip(self._buckets[:index], seeds, strict=False)
            seeds[index] = min([seeds[index], *(math.ceil(rows / fewer) * each for fewer, each in smaller)])
        self._measured[:] = self._predicted[:] = self._fastest[:] = seeds
        self._measured_at = [now] * len(seeds)
        self._then = [seeds] * len(seeds)

    def _measure(self, index: int, seconds: float, now: float) -> None:
        old, new = self._measured[index], seconds
        if old is not None:
            # Between what is predicted and what was measured, nothing is strange.
            lowest = self._predicted[index] if self._last_batch[index] else old / MAX_SEED_ERROR
            old = min(max(new, lowest), old)
            new = old + _NEWEST_WEIGHT * (min(max(new, old / _MAX_STRANGENESS), old * _MAX_STRANGENESS) - old)
        self._num_batches += 1
        self._last_batch[index] = self._num_batches
        self._measured[index] = self._predicted[index] = new
        self._measured_at[index] = now
        self._fastest[index] = min(self._fastest[index] or new, new)
        if None in self._measured:
            self._fill_in()
        # To infer from every batch would take the event loop a tenth of a request's time.
        if new < 0.95 * self._inferred_at[index] or not self._num_batches % _RECENT_BATCHES:
            self._inferred_at[index] = new
            self._infer_from(index)
        self._then[index] = self._predicted.copy()

    def _infer_from(self, index: int) -> None:
        """Predict the buckets next to this one from its new measurement, up to the first that ran lately."""
        for others in (range(index + 1, len(self._buckets)), range(index - 1, -1, -1)):
            for other in others:
                last = self._last_batch[other]
                if last and self._num_batches - last < _RECENT_BATCHES:
                    break
                measured = self._measured[other]
                if measured is not None:
                    self._predicted[other] = min(self._predicted[other], self._inferred(other, index, measured))

    def _inferred(self, other: int, index: int, measured: float) -> float:
        """What the bucket `other` takes now if it changed as the bucket `index` did since `other` was measured."""
        new, then = self._predicted[index], self._then[other][index]
        inferred = measured * new / then if then else measured
        if not self._last_batch[other]:  # the warm-up may have been disturbed in this bucket alone
            rows, other_rows = self._buckets[index], self._buckets[other]
            if other > index:
                return min(max(inferred, new), new * math.ceil(other_rows / rows))
            return min(max(inferred, new / math.ceil(rows / other_rows)), new)
        return inferred

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
        buckets = sorted(seconds_by_rows)
        cost = self._costs[id(context)] = ContextCost(context, buckets)
        cost.seed([seconds_by_rows[rows] for rows in buckets], now)
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
