"""A key's past: counts, sums and rates in windows of time, and the time since the last event.

A key is an integer of at least zero by which events are looked up, such as an account or a terminal. All arrays are
`[events]`, in any order. Times are in one unit of the caller's choice. Nothing looks into the future; events of one key
at the same time count in the order in which they are given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Values = NDArray[np.float64]


class Past:
    """The events of each key, in order of time.

    Args:
        key: the key of each event.
        time: the time of each event.
    """

    def __init__(self, key: Ints, time: Values) -> None:
        self._order = np.lexsort((time, key))
        key, self._time = key[self._order], time[self._order]
        self._starts = np.append(True, np.diff(key) != 0)
        # All keys lie on one axis, so far apart that no window reaches the events of another key.
        self._stride = 2 * float(np.ptp(time)) + 1
        self._own = key * self._stride
        self._axis = self._own + (self._time - time.min())

    def since_last(self) -> Values:
        """The time since the key's previous event; NaN for the first event of a key."""
        gap = np.append(np.nan, np.diff(self._time))
        gap[self._starts] = np.nan
        return self._in_given_order(gap)

    def total(self, window: float, values: Values | None = None) -> Values:
        """The number of the key's events in the window before each event, or the sum of their `values`."""
        before = self._cumulated(values)
        return self._in_given_order(before[np.arange(len(self._order))] - before[self._first_since(window)])

    def reported(self, window: float, delay: float, happened: NDArray[np.bool_]) -> Values:
        """The share of reported events that `happened`; NaN without reported events.

        An event is reported `delay` after its time. The window ends `delay` before each event.
        """
        count, hits = np.arange(len(self._order) + 1), self._cumulated(happened.astype(np.float64))
        last, first = self._first_since(delay), self._first_since(delay + window)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._in_given_order((hits[last] - hits[first]) / (count[last] - count[first]))

    def _first_since(self, ago: float) -> Ints:
        """The position of the key's first event that is at most this long ago."""
        return np.searchsorted(self._axis, np.maximum(self._axis - ago, self._own))

    def _cumulated(self, values: Values | None) -> Values:
        ordered = np.ones(len(self._order)) if values is None else values[self._order]
        return np.concatenate([[0.0], np.cumsum(ordered)])

    def _in_given_order(self, ordered: Values) -> Values:
        out = np.empty(len(ordered))
        out[self._order] = ordered
        return out
