"""What is known of the batch on the device: when it began and how long it should take."""

from __future__ import annotations

SHORTEST_OVERRUN_S = 10.0
"""No batch is called hung before this. A CPU whose cores are taken, or a GPU that another process uses, stalls for
seconds and comes back; three health checks in a row, which Ray needs, are 30 s."""


class BatchWatchdog:
    """One batch at a time: `begin` and `end` in turn."""

    __slots__ = ("_began_at", "_expected_s", "_max_overrun")

    def __init__(self, max_overrun: float) -> None:
        """`max_overrun`: how many times its expected time a batch may take."""
        self._max_overrun = max_overrun
        self._began_at: float | None = None
        self._expected_s = 0.0

    def begin(self, expected_s: float, now: float) -> None:
        """A batch goes to the device; `expected_s` 0 where nothing is known of its like."""
        self._began_at, self._expected_s = now, expected_s

    def end(self) -> None:
        """The device is free."""
        self._began_at = None

    def rest_s(self, now: float) -> float:
        """Seconds until the device is expected to be free.

        A batch that is late is expected to take as long again as it is late: nothing better is known of it, and while
        it hangs the callers with little time are then told so.
        """
        return 0.0 if self._began_at is None else abs(self._expected_s - (now - self._began_at))

    def is_overrun(self, now: float) -> bool:
        """The batch has taken so much longer than its like that the device must be taken for hung."""
        if self._began_at is None or not self._expected_s:
            return False
        return now - self._began_at > max(self._max_overrun * self._expected_s, SHORTEST_OVERRUN_S)
