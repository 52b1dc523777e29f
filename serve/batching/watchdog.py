"""The watch over the batches on the device: how long they will take, and whether one hangs."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

MIN_HUNG_S = 10.0
"""No batch counts as hung before this. A CPU whose cores are taken, or a GPU that another process uses, can stall for
seconds and come back. Ray needs three failed health checks in a row, which take 30 s."""


class DeviceLoad(NamedTuple):
    """The batches on the device: when the first began, its expected seconds (NaN for no batch), and those of all."""

    began_at: float
    first_s: float
    total_s: float

    def remaining_s(self, now: float) -> float:
        """See `BatchWatchdog.remaining_s`."""
        if self.first_s != self.first_s:
            return 0.0
        return abs(self.first_s - (now - self.began_at)) + self.total_s - self.first_s


class BatchWatchdog:
    """Knows when the batch on the device began and how long it and the next should take: `begin` each, then `end` each.

    Args:
        hung_factor: how many times its expected time a batch may take.
    """

    __slots__ = ("_began_at", "_expected_s", "_hung_factor")

    def __init__(self, hung_factor: float) -> None:
        self._hung_factor = hung_factor
        self._began_at = 0.0
        self._expected_s: deque[float] = deque()

    def begin(self, expected_s: float, now: float) -> None:
        """A batch goes to the device, behind any other; `expected_s` is 0 where no similar batch was measured."""
        if not self._expected_s:
            self._began_at = now
        self._expected_s.append(expected_s)

    def end(self, now: float) -> None:
        """The oldest batch has ended, and the next begins."""
        self._expected_s.popleft()
        self._began_at = now

    def clear(self) -> None:
        """Nothing is on the device."""
        self._expected_s.clear()

    @property
    def ends_at(self) -> float:
        """When the batch on the device was expected to end as it began; infinity where no similar one was measured."""
        return self._began_at + (self._expected_s[0] or math.inf)

    def remaining_s(self, now: float) -> float:
        """Seconds until the device is expected to be free of every batch.

        A late batch is expected to take as long again as it is late: there is no better estimate, and callers with
        little time left are then refused while it hangs.
        """
        if not self._expected_s:  # as `DeviceLoad.remaining_s`, without making one: every request asks
            return 0.0
        return abs(self._expected_s[0] - (now - self._began_at)) + sum(self._expected_s) - self._expected_s[0]

    def load(self) -> DeviceLoad:
        """The batches on the device."""
        if not self._expected_s:
            return DeviceLoad(self._began_at, math.nan, 0.0)
        return DeviceLoad(self._began_at, self._expected_s[0], sum(self._expected_s))

    def is_hung(self, now: float) -> bool:
        """The batch has taken so much longer than expected that the device must be considered hung."""
        if not self._expected_s or not self._expected_s[0]:
            return False
        return now - self._began_at > max(self._hung_factor * self._expected_s[0], MIN_HUNG_S)
