"""When a batch is cut ahead: so long before the end of the batch on the device that the device need not wait for it.

Theory of operation
-------------------
A batch that is cut early misses the rows that arrive afterwards. A batch that is cut late leaves the device idle. The
lead between the two is learned: for each batch, the time that it needed from its cut until the host had prepared it,
and by how much the batch before it ended earlier than predicted. So the lead also makes up for predictions that are too
long as a rule. It is the mean of what was needed and twice the mean deviation, as TCP sets its timeouts.
"""

from __future__ import annotations

_FIRST_S = 0.001
_NEWEST_WEIGHT = 0.2
_MAX_STRANGENESS = 4.0
"""One need counts as at most this many times the lead."""


class Lead:
    """Learns `seconds`, from the cut of a batch ahead to the predicted end of the batch on the device."""

    __slots__ = ("_deviation_s", "_mean_s")

    def __init__(self) -> None:
        self._mean_s = _FIRST_S
        self._deviation_s = 0.0

    @property
    def seconds(self) -> float:
        """How long before that end a batch is cut; 0 or more."""
        return self._mean_s + 2 * self._deviation_s

    def learn(self, needed_s: float) -> None:
        """A batch would have been ready just in time if it had been cut so long before that predicted end."""
        needed_s = min(max(needed_s, 0.0), _MAX_STRANGENESS * max(self.seconds, _FIRST_S))
        self._deviation_s += _NEWEST_WEIGHT * (abs(needed_s - self._mean_s) - self._deviation_s)
        self._mean_s += _NEWEST_WEIGHT * (needed_s - self._mean_s)
