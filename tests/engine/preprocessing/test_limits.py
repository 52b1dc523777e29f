"""The limits of what fitted preprocessing can transform, held to tabpfn's own transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ensembles import fit, tabpfn_rows
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.engine.preprocessing.limits import find_limits

LARGEST = float(np.finfo(np.float32).max)
FEATURES = range(4)


def members(checkpoint: Path, *names: str) -> list[Any]:
    """Of a table whose columns lead to powers that overflow above, below, and nowhere."""
    rng = np.random.default_rng(0)
    context = rng.normal(size=(60, 4)) * [1, 1, 1, 1e-3]
    context[:, 1] = np.exp(context[:, 1])
    transforms: Any = [PreprocessorConfig(name, categorical_name="numeric") for name in names]
    config = {"PREPROCESS_TRANSFORMS": transforms, "FINGERPRINT_FEATURE": False}
    return fit(checkpoint, config, context, num_members=len(names), categorical=[])


def transforms(fitted: list[Any], row: list[float]) -> bool:
    try:
        for member in fitted:
            tabpfn_rows(member, np.array([row]))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["kdi", "kdi_uni", "kdi_alpha_0.3", "norm_and_kdi"])
def test_a_feature_is_limited_to_what_tabpfn_transforms(checkpoint: Path, name: str) -> None:
    fitted = members(checkpoint, name)
    limits = find_limits(fitted, FEATURES, 4)
    assert limits
    assert 0 not in limits, "a normal column of unit scale takes every number"
    for feature in FEATURES:
        for place, end in enumerate(limits.get(feature, (-LARGEST, LARGEST))):
            row = [np.nan] * 4
            row[feature] = end
            assert transforms(fitted, row)
            row[feature] = end * 1.002
            assert transforms(fitted, row) == (abs(end) == LARGEST), (feature, place)
    ends = [limits.get(feature, (-LARGEST, LARGEST)) for feature in FEATURES]
    for place in (0, 1):
        assert transforms(fitted, [end[place] for end in ends])


@pytest.mark.parametrize("name", ["quantile_norm", "safepower_box", "power", "squashing_scaler_default", "none"])
def test_a_recipe_that_takes_every_number_has_no_limits(checkpoint: Path, name: str) -> None:
    fitted = members(checkpoint, name)
    assert not find_limits(fitted, FEATURES, 4)
    assert transforms(fitted, [LARGEST] * 4)
    assert transforms(fitted, [-LARGEST] * 4)


def test_every_member_must_take_the_number(checkpoint: Path) -> None:
    alone, together = members(checkpoint, "kdi"), members(checkpoint, "quantile_norm", "kdi")
    assert find_limits(together, FEATURES, 4) == find_limits(alone, FEATURES, 4)


def test_a_feature_whose_numbers_do_not_pass_is_not_tried(checkpoint: Path) -> None:
    fitted = members(checkpoint, "kdi")
    for feature, ends in find_limits(fitted, FEATURES, 4).items():
        assert find_limits(fitted, [feature], 4) == {feature: ends}
        assert feature not in find_limits(fitted, [other for other in FEATURES if other != feature], 4)


def test_numbers_that_fail_only_together_are_limited_together(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No recipe of tabpfn does that; one that sums two columns would."""
    from serve.engine.preprocessing import limits as module

    class Summing:
        def __init__(self, member: Any) -> None: ...

        def __call__(self, rows: np.ndarray) -> None:
            if np.nansum(np.abs(rows[:, :2])) > LARGEST:
                raise ValueError("too large together")

    monkeypatch.setattr(module, "TabPFNMember", Summing)
    found = find_limits(members(checkpoint, "kdi"), FEATURES, 4)
    for place in (0, 1):
        assert 0.49 * LARGEST < abs(found[0][place]) <= 0.5 * LARGEST
        assert abs(found[1][place]) <= 0.5 * LARGEST
