"""Progress of a long run on stderr: how much is done, and an estimate of the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Progress:
    """Counts steps and prints lines such as `14:03:12 4 of 12 cells, about 3 min left: fraud, 32 rows`.

    Args:
        num_steps: steps of the whole run.
        unit: name of the steps, in the plural.
        total_weight: sum of the weights of all steps, where some steps take longer than others; None: each counts 1.
        every_s: print no more often than this.
    """

    def __init__(
        self,
        num_steps: int,
        unit: str,
        total_weight: float | None = None,
        every_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_steps, self._unit = num_steps, unit
        self._total_weight = num_steps if total_weight is None else total_weight
        self._every_s, self._clock = every_s, clock
        self._started_at = clock()
        self._said_at = -float("inf")
        self._num_done = 0
        self._weight_done = 0.0

    def step(self, what: str, weight: float = 1.0) -> None:
        """One more step is done."""
        self._num_done += 1
        self._weight_done += weight
        if self._num_done == self._num_steps or self._clock() - self._said_at >= self._every_s:
            self.say(what)

    def expect(self, num_left: int) -> None:
        """Correct the number of steps: after the next one, `num_left` are still to come."""
        self._num_steps = self._num_done + 1 + num_left
        self._total_weight = self._weight_done + 1 + num_left

    def say(self, what: str) -> None:
        """Print a line without counting a step."""
        self._said_at = self._clock()
        print(f"{time.strftime('%H:%M:%S')} {self.state()}: {what}", file=sys.stderr, flush=True)

    def state(self) -> str:
        """Steps done, and the time left at the speed so far."""
        done = f"{self._num_done} of {self._num_steps} {self._unit}"
        if not self._weight_done or self._num_done >= self._num_steps:
            return done
        spent_s = self._clock() - self._started_at
        left_s = spent_s * max(0.0, self._total_weight / self._weight_done - 1)
        return f"{done}, about {duration(left_s)} left"


def duration(seconds: float) -> str:
    """Rounded for a reader: `40 s`, `3 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
