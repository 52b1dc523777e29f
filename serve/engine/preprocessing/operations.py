"""Elementwise operations on columns, in tabpfn's order of arithmetic, so that results equal tabpfn's to the bit.

Parameters are stacked over columns, [columns]; values are [columns, rows]. NaN stays NaN unless stated otherwise.
Infinities are removed before any operation runs; `Squash` and `Finite` see infinities that arithmetic made. In float32,
root and logarithm are torch's, whose last bits differ from numpy's.
"""

from __future__ import annotations

import numpy as np
import torch

from serve.engine.preprocessing.graph import Array


class Scale:
    """`x / scale`: scikit-learn's StandardScaler without mean."""

    def __init__(self, scale: Array) -> None:
        self._scale = scale[:, None]

    def __call__(self, x: Array) -> Array:
        return x / self._scale


class Standardize:
    """`(x - center) / scale`: scikit-learn's StandardScaler and RobustScaler."""

    def __init__(self, center: Array, scale: Array) -> None:
        self._center, self._scale = center[:, None], scale[:, None]

    def __call__(self, x: Array) -> Array:
        return (x - self._center) / self._scale


class Finite:
    """Replaces values that are not finite by the fitted mean (tabpfn steps/utils.py `_make_finite_steps`)."""

    def __init__(self, mean: Array) -> None:
        self._mean = mean[:, None]

    def __call__(self, x: Array) -> Array:
        return np.where(np.isfinite(x), x, self._mean)


class Product:
    """The product of two columns; values are [2, columns, rows]."""

    def __call__(self, x: Array) -> Array:
        product: Array = x[0] * x[1]
        return product


class Power:
    """Yeo-Johnson with fitted exponents (scipy `_yeojohnson_transform`, which PowerTransformer.transform calls).

    One formula serves both signs: below zero it is the formula above zero for `-x` and `2 - exponent`, negated. That is
    exact, because only signs differ.
    """

    def __init__(self, exponent: Array) -> None:
        self._above, self._below = exponent[:, None], (2 - exponent)[:, None]
        # scipy's bounds, at which the power becomes a logarithm
        epsilon = np.finfo(exponent.dtype).eps
        self._logarithm_above = np.abs(self._above) < epsilon
        self._logarithm_below = np.abs(exponent - 2)[:, None] <= epsilon

    def __call__(self, x: Array) -> Array:
        above = x >= 0
        exponent = np.where(above, self._above, self._below)
        logarithm = np.log1p(np.where(above, x, -x))
        power = np.expm1(exponent * logarithm) / exponent
        magnitude = np.where(np.where(above, self._logarithm_above, self._logarithm_below), logarithm, power)
        return np.where(above, magnitude, -magnitude)


class Squash:
    """Centre, scale and soft clip to +-limit (tabpfn's SquashingScaler and TorchSquashingScaler, `transform`).

    Args:
        center, divisor, factor: of `(x - center) / divisor * factor`; divisor or factor is 1, by tabpfn's branch.
        is_zero: 1 where the fitted column was constant; each of its values becomes 0.
        limit: the largest absolute value.
    """

    def __init__(self, center: Array, divisor: Array, factor: Array, is_zero: Array, limit: Array) -> None:
        self._center, self._divisor, self._factor = center[:, None], divisor[:, None], factor[:, None]
        self._is_zero = (is_zero != 0)[:, None]
        self._limit = limit[:, None]

    def __call__(self, x: Array) -> Array:
        infinite = np.isinf(x)
        has_infinite = infinite.any()
        finite = np.where(infinite, np.nan, x) if has_infinite else x
        z = (finite - self._center) / self._divisor * self._factor
        z = np.where(self._is_zero & ~np.isnan(z), 0, z)
        z = z / _root(1 + np.square(z / self._limit))
        return np.where(infinite, np.copysign(self._limit, x), z) if has_infinite else z


class Indicator:
    """1 where the code is the category, else 0, also for a missing or unknown code (OneHotEncoder)."""

    def __init__(self, category: Array) -> None:
        self._category = category[:, None]
        self._is_missing = np.isnan(self._category)

    def __call__(self, x: Array) -> Array:
        matches: Array = (x == self._category) | (np.isnan(x) & self._is_missing)
        return matches.astype(x.dtype)


class SoftClip:
    """Makes values beyond the fitted bounds grow as a logarithm (tabpfn's TorchSoftClipOutliers, `transform`)."""

    def __init__(self, lower: Array, upper: Array) -> None:
        self._lower, self._upper = lower[:, None], upper[:, None]

    def __call__(self, x: Array) -> Array:
        growth = _log(1 + np.abs(x))
        # tabpfn takes the logarithm again of what it raised here, which lies below the upper bound whatever it is
        raised = np.maximum(self._lower - growth, x)
        clipped: Array = np.minimum(growth + self._upper, raised)
        return clipped


class SafeScale:
    """Imputes, scales and clips the input of torch's SVD (tabpfn's TorchSafeStandardScaler, `transform`)."""

    def __init__(self, scale: Array, mean: Array) -> None:
        self._scale = (scale + np.finfo(scale.dtype).eps)[:, None]
        self._mean = mean[:, None]

    def __call__(self, x: Array) -> Array:
        x = np.where(np.isfinite(x), x, self._mean) / self._scale
        x = np.minimum(np.maximum(x, -100), 100)
        return np.where(np.isfinite(x), x, 0)


def _root(x: Array) -> Array:
    root: Array = torch.sqrt(torch.from_numpy(x)).numpy() if x.dtype == np.float32 else np.sqrt(x)
    return root


def _log(x: Array) -> Array:
    logarithm: Array = torch.log(torch.from_numpy(x)).numpy() if x.dtype == np.float32 else np.log(x)
    return logarithm
