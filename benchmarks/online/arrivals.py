"""The times at which requests are due. They are drawn before the run, so the server can move none of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def poisson_arrivals(rate: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Due times in seconds from the start, sorted, in [0, `duration_s`): a Poisson process of `rate` per second.

    They depend on the seed and the rate alone, not on the other rates of the same run. Raises ValueError.
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


BURST_FACTOR, BURST_SHARE, BURST_S = 4.0, 0.1, 0.25
"""A burst offers four times the mean rate. Bursts take a tenth of the time, and each lasts 0.25 s on average."""


def bursty_arrivals(rate: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """As `poisson_arrivals`, but the rate switches between bursts and calm; `rate` is the long average.

    Bursts and calm last exponential times, so that neither can be foreseen (a two-state Markov-modulated Poisson
    process). The arrivals are drawn evenly on the scale of expected arrivals, and that scale is then mapped to time.
    """
    if not (rate > 0 and duration_s > 0):
        raise ValueError("rate and duration must be positive")
    rng = np.random.default_rng([seed, round(rate * 1000), 1])
    calm_rate = rate * (1 - BURST_SHARE * BURST_FACTOR) / (1 - BURST_SHARE)
    calm_s = BURST_S * (1 - BURST_SHARE) / BURST_SHARE
    is_burst = bool(rng.random() < BURST_SHARE)  # the run starts at any moment of the process, not always in calm
    times, expected = [0.0], [0.0]
    while times[-1] < duration_s:
        lasts = rng.exponential(BURST_S if is_burst else calm_s)
        expected.append(expected[-1] + lasts * (BURST_FACTOR * rate if is_burst else calm_rate))
        times.append(times[-1] + lasts)
        is_burst = not is_burst
    unit = np.sort(rng.uniform(0, expected[-1], size=rng.poisson(expected[-1])))
    due = np.interp(unit, expected, times)
    return due[due < duration_s]


ARRIVALS: dict[str, Callable[[float, float, int], NDArray[np.float64]]] = {
    "poisson": poisson_arrivals,
    "bursty": bursty_arrivals,
}


def draw_records(num_requests: int, num_records: int, seed: int) -> list[int]:
    """The record that each request posts, drawn evenly, so that a server can learn or cache no order."""
    return [int(record) for record in np.random.default_rng([seed, 0]).integers(num_records, size=num_requests)]
