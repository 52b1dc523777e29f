"""What a scorer knows of a key's past: counts, sums and rates in windows of time, and the time since the last event.

A key is whatever the events are looked up by, an account or a terminal, as an integer of at least zero. All arrays are
`[events]`, in any order; times are in one unit of the caller's choice. Nothing looks into the future: events of one
key at the same time count in their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Values = NDArray[np.float64]


class Past:
    """The events of each key in order of time, ready to be asked."""

    def __init__(self, key: Ints, time: Values) -> None:
        self._order = np.lexsort((time, key))
        key, self._time = key[self._order], time[self._order]
        self._starts = np.append(True, np.diff(key) != 0)
        # All keys on one axis, far enough apart that no window reaches another key's events.
        self._stride = 2 * float(np.ptp(time)) + 1
        self._own = key * self._stride
        self._axis = self._own + (self._time - time.min())

    def since_last(self) -> Values:
        """Time since the key's previous event; NaN for its first."""
        gap = np.append(np.nan, np.diff(self._time))
        gap[self._starts] = np.nan
        return self._in_given_order(gap)

    def total(self, window: float, values: Values | None = None) -> Values:
        """How many events (or the sum of their `values`) the key had in the window before each, itself left out."""
        before = self._cumulated(values)
        return self._in_given_order(before[np.arange(len(self._order))] - before[self._first_since(window)])

    def reported(self, window: float, delay: float, happened: NDArray[np.bool_]) -> Values:
        """Share of the key's events of the window before the last `delay` that `happened`; NaN without events."""
        count, hits = np.arange(len(self._order) + 1), self._cumulated(happened.astype(np.float64))
        last, first = self._first_since(delay), self._first_since(delay + window)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._in_given_order((hits[last] - hits[first]) / (count[last] - count[first]))

    def _first_since(self, ago: float) -> Ints:
        """Position of the key's first event that is no longer ago than this."""
        return np.searchsorted(self._axis, np.maximum(self._axis - ago, self._own))

    def _cumulated(self, values: Values | None) -> Values:
        ordered = np.ones(len(self._order)) if values is None else values[self._order]
        return np.concatenate([[0.0], np.cumsum(ordered)])

    def _in_given_order(self, ordered: Values) -> Values:
        out = np.empty(len(ordered))
        out[self._order] = ordered
        return out
