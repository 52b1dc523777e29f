"""The requests of a run: arrival times, contexts, sizes and deadlines, drawn from a seed before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.online.arrivals import ARRIVALS
from benchmarks.simulation.device import Device
from benchmarks.simulation.request import Context, Request
from serve.core import Priority

BULK_DEADLINE_S = 30.0
"""The server's default for `default_timeout_ms`: bulk callers can wait."""
BULK_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Share:
    """This share of all requests has `low` to `high` rows, uniformly distributed."""

    share: float
    low: int
    high: int
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Mix:
    """A distribution of request sizes."""

    name: str
    shares: tuple[Share, ...]

    @property
    def mean_rows(self) -> float:
        """Mean rows of a request."""
        return sum(part.share * (part.low + part.high) / 2 for part in self.shares)


ONE_ROW = Mix("1 row", (Share(1.0, 1, 1),))
TO_100_ROWS = Mix("1-100 rows", (Share(1.0, 1, 100),))
MIXED = Mix("mixed", (Share(0.70, 1, 1), Share(0.28, 1, 100), Share(0.02, BULK_ROWS, BULK_ROWS, Priority.BULK)))
MIXES = {mix.name: mix for mix in (ONE_ROW, TO_100_ROWS, MIXED)}


def draw_requests(
    mix: Mix,
    device: Device,
    contexts: Sequence[Context],
    *,
    rate: float,
    duration_s: float,
    arrivals: str = "poisson",
    zipf: float = 1.0,
    seed: int = 1,
) -> list[Request]:
    """An open loop of `rate` requests per second, in the order of their arrival.

    The context of popularity rank k (from 1) is requested in proportion to `k ** -zipf`.
    """
    times = ARRIVALS[arrivals](rate, duration_s, seed)
    rng = np.random.default_rng([seed, len(times), len(contexts)])
    part_of = rng.choice(len(mix.shares), size=len(times), p=[part.share for part in mix.shares])
    low = np.array([part.low for part in mix.shares])[part_of]
    high = np.array([part.high for part in mix.shares])[part_of]
    rows = rng.integers(low, high + 1)
    weights = np.arange(1, len(contexts) + 1, dtype=float) ** -zipf
    context_of = rng.choice(len(contexts), size=len(times), p=weights / weights.sum())
    timeouts = [BULK_DEADLINE_S if part.priority is Priority.BULK else device.deadline_s for part in mix.shares]
    return [
        Request(contexts[context], num_rows, mix.shares[part].priority, time, time + timeouts[part])
        for time, context, num_rows, part in zip(
            times.tolist(), context_of.tolist(), rows.tolist(), part_of.tolist(), strict=True
        )
    ]
