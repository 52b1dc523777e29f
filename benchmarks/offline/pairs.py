"""Two ways of the same work, timed side by side.

Rounds of A and B in turn, the order swapped in every other round, in one process: a clock that drops, a neighbour that
wakes up or a cache that fills hits both alike. The ratio is taken within each round and then the median of the ratios,
so that one bad round moves nothing. Between the two a pause: for some milliseconds after its last operation torch's
threads wait by spinning, on the cores that the other would use. It is spent awake, as a server under load is.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Work = Callable[[], Any]
Clock = Callable[[], float]

PAUSE_S = 0.02


@dataclass(frozen=True)
class Pairs:
    """Milliseconds of each round."""

    first_ms: tuple[float, ...]
    second_ms: tuple[float, ...]

    @property
    def first_median_ms(self) -> float:
        return statistics.median(self.first_ms)

    @property
    def second_median_ms(self) -> float:
        return statistics.median(self.second_ms)

    @property
    def speedup(self) -> float:
        """How many times faster the first is: median of second / first."""
        return statistics.median(b / a for a, b in zip(self.first_ms, self.second_ms, strict=True))


def measure_pairs(
    first: Work, second: Work, pairs: int, *, warmups: int = 2, clock: Clock = time.perf_counter
) -> Pairs:
    """Run both `warmups` times uncounted, then `pairs` rounds. The work must be done when it returns (no async GPU)."""
    for _ in range(warmups):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    for number in range(pairs):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            pause_ends = time.perf_counter() + PAUSE_S
            while time.perf_counter() < pause_ends:
                pass
            started = clock()
            (first, second)[index]()
            times[index].append(1000 * (clock() - started))
    return Pairs(tuple(times[0]), tuple(times[1]))
