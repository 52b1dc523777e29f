"""When a batch is cut ahead: so long before the end of the batch on the device that the device need not wait for it.

Theory of operation
-------------------
A batch that is full of interactive rows is cut at once, since no row can join it. Any other batch that is cut early
misses the rows that arrive afterwards, and one that is cut late leaves the device idle. So it is cut `seconds` before
the predicted end of the batch on the device; nearly all rows that arrive during that batch ride in it. No batch is cut
while a request waits whose deadline comes before that end, because its rows would be computed in vain.

The lead is learned: for each batch, the time that it needed from its cut until the host had prepared it, and by how
much the batch before it ended earlier than predicted. So the lead also makes up for predictions that are too long as a
rule: where the device waits for the host, that wait is part of what batches are learned to cost, and would stay.

It is the mean of what was needed and the mean deviation. Simulated with a host that needs 1 ms for batches of 3 to 6 ms
whose times scatter by 20 %, at 60 % of capacity: the device is idle for 7 % with the mean alone, 3 % with one deviation
and 1 % with two, which cut so early that the median latency is 5 % longer (`benchmarks/simulation/pipelined.py`).
"""

from __future__ import annotations

from serve.batching.fifo import R
from serve.batching.queue import BatchQueue
from serve.batching.watchdog import BatchWatchdog

_FIRST_S = 0.001
_NEWEST_WEIGHT = 0.2
_MAX_STRANGENESS = 4.0
"""One need counts as at most this many times the lead."""


class Lead:
    """Chooses the time of each cut ahead, and learns `seconds`."""

    __slots__ = ("_deviation_s", "_mean_s")

    def __init__(self) -> None:
        self._mean_s = _FIRST_S
        self._deviation_s = 0.0

    @property
    def seconds(self) -> float:
        """How long before the predicted end of the batch on the device the next one is cut; 0 or more."""
        return self._mean_s + self._deviation_s

    def cut_at(self, queue: BatchQueue[R], watchdog: BatchWatchdog, now: float) -> float | None:
        """When the next batch is to be cut behind the one on the device; in the past for now, None if nothing waits."""
        ready_at = queue.next_cut_at()
        if ready_at is None:
            return None
        ahead_at = now if queue.is_full(now) else watchdog.ends_at - self.seconds
        expires_at = queue.next_expiry_at()
        if expires_at is not None and expires_at <= now + watchdog.remaining_s(now):
            ahead_at = max(ahead_at, expires_at)
        return max(ready_at, ahead_at)

    def learn(self, needed_s: float) -> None:
        """A batch would have been ready just in time if it had been cut so long before that predicted end."""
        needed_s = min(max(needed_s, 0.0), _MAX_STRANGENESS * max(self.seconds, _FIRST_S))
        self._deviation_s += _NEWEST_WEIGHT * (abs(needed_s - self._mean_s) - self._deviation_s)
        self._mean_s += _NEWEST_WEIGHT * (needed_s - self._mean_s)
