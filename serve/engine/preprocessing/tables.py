"""Operations that look a value up in a fitted table: quantiles, and the codes of categories.

The tables of all columns of a call form one array. So a call is one batched binary search (torch's, as numpy has none)
and one gather, for any number of columns and members. A search compares only the row's own value.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from serve.engine.preprocessing.graph import Array

_MANY_ROWS = 32
"""From about 20 rows on, halving all searches together is faster than searching for one value after the other."""


class Lookup:
    """The code of a category, NaN for an unknown one (OrdinalEncoder, then tabpfn's shuffle of the codes).

    Args:
        keys: [columns, entries], ascending, padded with infinity.
        codes: [columns, entries].
    """

    def __init__(self, keys: Array, codes: Array) -> None:
        self._keys = torch.from_numpy(keys)
        self._last = keys.shape[1] - 1
        self._entries = np.stack([keys, codes], axis=-1).reshape(-1, 2)
        self._start = _starts(keys)

    def __call__(self, x: Array) -> Array:
        found = torch.searchsorted(self._keys, torch.from_numpy(x)).numpy()
        entries = self._entries.take(np.minimum(found, self._last) + self._start, axis=0)
        return np.where(entries[..., 0] == x, entries[..., 1], np.nan)


class Quantile:
    """scikit-learn's QuantileTransformer to the uniform distribution (`_transform_col`), to the bit.

    It is the mean of two interpolations, one anchored at the left knot and one at the right, which differ where knots
    repeat. The ends are exactly 0 and 1. Equal knots are merged once, so that one search finds the interval, whose
    constants lie side by side.

    Args:
        knots, references: [columns, quantiles], both ascending and finite; two quantiles or more.
    """

    def __init__(self, knots: Array, references: Array) -> None:
        tables = np.stack([_intervals(*pair) for pair in zip(knots, references, strict=True)])
        self._entries = np.ascontiguousarray(np.concatenate(tables).T)
        self._searched = torch.from_numpy(np.ascontiguousarray(tables[..., 0]))
        self._start = _starts(tables[..., 0]) - 1
        self._lowest = knots[:, :1]
        self._highest = np.array([[table[np.isfinite(table[:, 0]), 0].max()] for table in tables])

    def __call__(self, x: Array) -> Array:
        x = np.minimum(np.maximum(x, self._lowest), self._highest)
        found = self._search_many(x) if x.shape[1] >= _MANY_ROWS else self._search(x)
        low, at_low, from_low, slope, high, to_high = self._entries.take(found, axis=1)
        between: Array = 0.5 * ((slope * (x - low) + from_low) + (slope * (x - high) + to_high))
        return np.where(x == low, at_low, between)

    def _search(self, x: Array) -> NDArray[np.intp]:
        """The interval of each value: the last entry of its column that is not above it."""
        found: NDArray[np.intp] = torch.searchsorted(self._searched, torch.from_numpy(x), right=True).numpy()
        return found + self._start

    def _search_many(self, x: Array) -> NDArray[np.intp]:
        """The same, one halving of all searches at a time: a processor cannot guess the branches of single searches."""
        found = np.broadcast_to(self._start, x.shape)
        step = self._searched.shape[1] // 2
        while step:
            found = found + step * (self._entries[0].take(found + step) <= x)
            step //= 2
        return found


class TorchQuantile:
    """As tabpfn's torch pipeline, in float32 (torch/torch_quantile_transformer.py `_interpolate`).

    Args:
        knots, references: [columns, quantiles].
        ratio: how far to extrapolate beyond the ends; NaN does not extrapolate.
    """

    def __init__(self, knots: Array, references: Array, ratio: Array) -> None:
        width = np.diff(knots)
        slope = np.diff(references) / np.where(width == 0, 1, width)
        intervals = [knots[:, :-1], references[:, :-1], knots[:, 1:], references[:, 1:], slope]
        self._entries = np.stack(intervals, axis=-1).reshape(-1, len(intervals))
        self._start = _starts(slope)
        self._last = slope.shape[1] - 1
        self._knots = torch.from_numpy(knots)
        self._lowest, self._highest = knots[:, :1], knots[:, -1:]
        self._first, self._final = references[:, :1], references[:, -1:]
        self._is_constant = self._lowest == self._highest
        self._ratio = ratio[:, None]
        self._extrapolates = ~np.isnan(self._ratio) & ~self._is_constant

    def __call__(self, x: Array) -> Array:
        left, right = self._interval(x, right=False), self._interval(x, right=True)
        forward = left[..., 1] + left[..., 4] * (x - left[..., 0])
        backward = right[..., 3] + right[..., 4] * (x - right[..., 2])
        below, above = x <= self._lowest, x >= self._highest
        forward = np.where(above, self._final, np.where(below, self._first, forward))
        # tabpfn checks the mirrored ends in the mirrored order
        backward = np.where(below, self._first, np.where(above, self._final, backward))
        middle = np.where(self._is_constant, self._half(), forward), np.where(self._is_constant, self._half(), backward)
        y = np.minimum(np.maximum(0.5 * (middle[0] + middle[1]), 0), 1)
        return np.where(np.isnan(x), np.nan, self._extrapolate(x, y)).astype(x.dtype)

    def _interval(self, x: Array, *, right: bool) -> Array:
        found = torch.searchsorted(self._knots, torch.from_numpy(x), right=right).numpy() - 1
        entries: Array = self._entries.take(np.clip(found, 0, self._last) + self._start, axis=0)
        return entries

    def _half(self) -> Array:
        half: Array = 0.5 * (self._first + self._final)
        return half

    def _extrapolate(self, x: Array, y: Array) -> Array:
        if not self._extrapolates.any():
            return y
        span = self._highest - self._lowest
        position = (x - self._lowest) / np.where(span == 0, 1, span)
        y = np.where((x < self._lowest) & self._extrapolates, np.minimum(np.maximum(position, -self._ratio), 0), y)
        return np.where(
            (x > self._highest) & self._extrapolates, np.minimum(np.maximum(position, 1), 1 + self._ratio), y
        )


def _starts(table: Array) -> NDArray[np.intp]:
    """The index of each column's first entry when the tables are joined in order: [columns, 1]."""
    starts: NDArray[np.intp] = np.arange(len(table), dtype=np.intp)[:, None] * table.shape[1]
    return starts


def _intervals(knots: Array, references: Array) -> Array:
    """One row per interval, [rows, 6]: low knot, value at the knot, line from it, slope, high knot, line to it.

    The number of rows is the next power of two above the number of quantiles. Unused rows come last.
    """
    low, first = np.unique(knots, return_index=True)
    last = np.append(first[1:], len(knots)) - 1
    table = np.zeros((2 ** len(knots).bit_length(), 6), dtype=knots.dtype)
    table[:, 0] = np.inf
    if len(low) == 1:
        # a constant column: values up to it become 0, values above it 1
        table[0, 0], table[1, :2] = low[0], (np.nextafter(low[0], np.inf), 1)
        return table
    filled = table[: len(low)]
    filled[:, 0] = low
    filled[:, 1] = 0.5 * (references[last] + references[first])
    filled[0, 1], filled[-1, 1] = 0, 1
    filled[:, 2] = references[last]
    filled[:-1, 3] = (references[first[1:]] - references[last[:-1]]) / (low[1:] - low[:-1])
    filled[:, 4] = np.append(low[1:], low[-1:])
    filled[:, 5] = np.append(references[first[1:]], references[last[-1:]])
    return table
