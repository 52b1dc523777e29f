"""The numbers that fitted preprocessing can transform, learned by trying.

Some recipes of tabpfn raise an error for a finite number. The `kdi` family does: its power overflows float64, and
scikit-learn then refuses an infinity. In a batch such a row would fail its neighbours' answers too. So the limits of
each feature are learned when a model is loaded, and the row encoder refuses what lies beyond them (`Coding.limits`).

Only members with a step that has no translation are tried. Operations of `graph.py` raise no error for any number.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.engine.preprocessing.member import Graphs, TabPFNMember, translate_member
from serve.engine.preprocessing.transformers import Untranslatable

_LARGEST = np.finfo(np.float32).max
_RESOLUTION = 1 << 13
"""In bits of float32: limits are found to 0.1 %, in 18 trials for each feature that has one."""
_SIGNS = (-1.0, 1.0)


def find_limits(
    members: Sequence[Any], features: Sequence[int], num_features: int
) -> Mapping[int, tuple[float, float]]:
    """The least and the largest number that every member can transform, for each feature that has such limits.

    A number of either sign is taken up to its limit, which lies at most 0.1 % below the largest such number.

    Args:
        members: `estimator.executor_.ensemble_members`.
        features: the positions of those features into which numbers of a request pass unchanged.
        num_features: columns of a clean row.
    """
    limits = {sign: np.full(num_features, _LARGEST) for sign in _SIGNS}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about overflows, which are looked for
        for member in filter(_may_fail, members):
            for sign, own in limits.items():
                _Search(TabPFNMember(member), sign, own).lower(list(features))
    lowest, highest = -limits[-1.0], limits[1.0]
    return {
        feature: (float(lowest[feature]), float(highest[feature]))
        for feature in features
        if lowest[feature] > -_LARGEST or highest[feature] < _LARGEST
    }


def _may_fail(member: Any) -> bool:
    try:
        translate_member(member, Graphs.empty())
    except Untranslatable:
        return True
    return False


class _Search:
    """Lowers the limits of one sign until the member transforms a row in which every feature is at its limit.

    Args:
        limits: the magnitudes, float32 [features]; changed in place.
    """

    def __init__(self, member: TabPFNMember, sign: float, limits: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._member, self._sign, self._limits = member, sign, limits

    def lower(self, features: list[int]) -> None:
        """Lower what must be lowered for these features; all others are missing."""
        if not features or self._takes(features, self._limits[features]):
            return
        halves = [features[::2], features[1::2]] if len(features) > 1 else []
        for half in halves:
            self.lower(half)
        # One feature fails alone, or several fail only together.
        if not self._takes(features, self._limits[features]):
            self._limits[features] = np.minimum(self._limits[features], self._largest(features))

    def _largest(self, features: list[int]) -> np.float32:
        """The largest magnitude that all of these features may have at once, by halving the range of its bits."""
        low, high = 0, int(np.float32(self._limits[features].max()).view(np.int32))
        while high - low > _RESOLUTION:
            middle = (low + high) // 2
            magnitude = np.int32(middle).view(np.float32)
            if self._takes(features, np.minimum(self._limits[features], magnitude)):
                low = middle
            else:
                high = middle
        return np.float32(np.int32(low).view(np.float32))

    def _takes(self, features: list[int], magnitudes: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
        row = np.full((1, len(self._limits)), np.nan)
        row[0, features] = self._sign * magnitudes.astype(np.float64)
        try:
            self._member(row)
        except MemoryError:
            raise
        except Exception:  # whatever it is, it would fail a batch
            return False
        return True
