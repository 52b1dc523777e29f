"""Times two functions that do the same work, side by side.

Each round runs A and B in one process, and every other round swaps their order. So a slower clock, other load on the
machine or a filling cache affects both alike. The speed-up is the median of the rounds' ratios, so one bad round does
not move it. A pause stands before each call: torch's threads spin for some milliseconds after their last operation, on
cores that the other function needs. The pause is spent awake, like a server under load.
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
        """Median time of the first function."""
        return statistics.median(self.first_ms)

    @property
    def second_median_ms(self) -> float:
        """Median time of the second function."""
        return statistics.median(self.second_ms)

    @property
    def speedup(self) -> float:
        """How many times faster the first function is: the median of second / first."""
        return statistics.median(b / a for a, b in zip(self.first_ms, self.second_ms, strict=True))


def measure_pairs(
    first: Work, second: Work, pairs: int, *, warmups: int = 2, clock: Clock = time.perf_counter
) -> Pairs:
    """Run both `warmups` times uncounted, then `pairs` rounds. A function must return only when its work is done."""
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
