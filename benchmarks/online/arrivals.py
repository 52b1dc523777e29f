"""When requests are due. Drawn before the run, so that nothing that the server does can move an arrival."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def poisson_arrivals(rate: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Due times in seconds from the start, sorted, in [0, `duration_s`): a Poisson process of `rate` per second.

    A rate's arrivals depend on the seed and that rate alone, not on what else is measured in the same run.
    """
    if not (rate > 0 and duration_s > 0):
        raise ValueError("rate and duration must be positive")
    rng = np.random.default_rng([seed, round(rate * 1000)])
    expected = rate * duration_s
    due = np.empty(0)
    while due.size == 0 or due[-1] < duration_s:
        gaps = rng.exponential(1 / rate, size=math.ceil(expected + 4 * math.sqrt(expected)) + 16)
        last = due[-1] if due.size else 0.0
        due = np.concatenate([due, last + np.cumsum(gaps)])
    return due[due < duration_s]


def draw_records(num_requests: int, num_records: int, seed: int) -> list[int]:
    """Which record each request posts: drawn evenly, so that no order of theirs can be learned or cached."""
    return [int(record) for record in np.random.default_rng([seed, 0]).integers(num_records, size=num_requests)]
