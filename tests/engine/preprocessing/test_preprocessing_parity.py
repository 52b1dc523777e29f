"""Compiled preprocessing against tabpfn's own transforms, on the same fitted members."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from ensembles import (
    PRESETS,
    assert_close,
    bits,
    fit,
    member_rows,
    odd_rows,
    preset,
    table,
    tabpfn_rows,
    tabpfn_rows_alone,
)
from hypothesis import given, settings
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import ModelDefinition, QueryTable
from serve.engine import cleaning, tabpfn_estimators
from serve.engine.preprocessing import Preprocessing, compile_preprocessing
from serve.engine.row_encoder import RowEncoder

Fitted = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def fitted(checkpoint: Path) -> Fitted:
    """Members of a preset on the test table, fitted once."""

    @cache
    def members(name: str, regression: bool = False, in_torch: bool = False, passthrough: bool = False) -> list[Any]:
        context = table(150, seed=0)
        if passthrough:
            context[3, 0], context[5, 7], context[6, 7] = np.inf, -np.inf, np.inf
        config = {**preset(name), "ENABLE_GPU_PREPROCESSING": in_torch, "PASSTHROUGH_INF": passthrough}
        return fit(checkpoint, config, context, regression=regression)

    return members


def check(members: list[Any], rows: np.ndarray) -> Preprocessing:
    """Every member compiled and equal; where it has a fingerprint, to tabpfn's answer for the row alone."""
    preprocessing = compile_preprocessing(members)
    assert preprocessing.uncompiled == ()
    for member, got in zip(members, member_rows(preprocessing, rows), strict=True):
        hashed = member.config.add_fingerprint_feature
        expected = tabpfn_rows_alone(member, rows) if hashed else tabpfn_rows(member, rows)
        assert_close(got, expected)
    return preprocessing


@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_classification(fitted: Fitted, name: str, in_torch: bool) -> None:
    check(fitted(name, in_torch=in_torch), odd_rows())


@pytest.mark.parametrize("name", ["demo", "v2_regression", "v2_5_regression"])
def test_regression(fitted: Fitted, name: str) -> None:
    check(fitted(name, regression=True), odd_rows())


@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("name", ["demo", "v2_regression", "v2_5_regression"])
def test_infinite(fitted: Fitted, name: str, in_torch: bool) -> None:
    rows = odd_rows()
    rows[0, :4], rows[1, :], rows[2, 7] = np.inf, -np.inf, np.inf
    preprocessing = check(fitted(name, in_torch=in_torch, passthrough=True), rows)
    assert any(np.isinf(prepared).any() for prepared in member_rows(preprocessing, rows))


@pytest.mark.parametrize("name", PRESETS)
def test_alone_as_in_company(fitted: Fitted, name: str) -> None:
    """To the bit, fingerprints included: neither the number of rows nor a neighbour with infinities reaches a row."""
    preprocessing = compile_preprocessing(fitted(name))
    rows = np.resize(odd_rows(), (256, 8))
    rows[5] = rows[99] = np.inf
    together = [output.numpy() for output in preprocessing(rows)]
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [output.numpy() for output in preprocessing(rows[order])]
    for whole, moved in zip(together, shuffled, strict=True):
        np.testing.assert_array_equal(bits(whole[:, order]), bits(moved))
    for row in range(12):
        for whole, alone in zip(together, preprocessing(rows[row : row + 1]), strict=True):
            np.testing.assert_array_equal(bits(whole[:, row : row + 1]), bits(alone.numpy()))


@settings(max_examples=25)
@given(
    name=st.sampled_from(PRESETS),
    num_rows=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    missing=st.sampled_from([0.0, 0.1, 0.9]),
    scale=st.sampled_from([0.1, 1.0, 100.0]),
)
def test_any_batch_is_its_rows_alone(
    fitted: Fitted, name: str, num_rows: int, seed: int, missing: float, scale: float
) -> None:
    """To the bit, whatever the number of rows: from some numbers on other routines do the work."""
    preprocessing = compile_preprocessing(fitted(name))
    rows = table(num_rows, seed, missing=missing) * scale
    together = [output.numpy() for output in preprocessing(rows)]
    for row in np.random.default_rng(seed).permutation(num_rows)[:20]:
        for whole, alone in zip(together, preprocessing(rows[row : row + 1]), strict=True):
            np.testing.assert_array_equal(bits(whole[:, row : row + 1]), bits(alone.numpy()))


def test_alone_as_in_company_in_torch(fitted: Fitted) -> None:
    preprocessing = compile_preprocessing(fitted("v2_5", in_torch=True))
    rows = odd_rows()
    together = [output.numpy() for output in preprocessing(rows)]
    for row in range(len(rows)):
        for whole, alone in zip(together, preprocessing(rows[row : row + 1]), strict=True):
            np.testing.assert_array_equal(bits(whole[:, row : row + 1]), bits(alone.numpy()))


def test_fingerprint_tells_zeros_apart_as_tabpfn_does(fitted: Fitted) -> None:
    members = fitted("v2")
    rows = odd_rows()[4:6]
    assert np.signbit(rows[0]).all()
    assert not np.signbit(rows[1]).any()
    for member, got in zip(members, member_rows(compile_preprocessing(members), rows), strict=True):
        place = [feature.name for feature in member.feature_schema.features].index("fingerprint_0")
        assert got[0, place] != got[1, place]
        np.testing.assert_array_equal(got[:, place], tabpfn_rows_alone(member, rows)[:, place])


def test_wide(checkpoint: Path) -> None:
    """More features than a member takes, so that each has its own subset."""
    rng = np.random.default_rng(0)
    context = rng.normal(size=(80, 200))
    context[:, 3:6] = rng.integers(0, 3, (80, 3))
    transforms = [
        PreprocessorConfig("quantile_uni", categorical_name="ordinal_shuffled", max_features_per_estimator=60),
        PreprocessorConfig("safepower", categorical_name="onehot", max_features_per_estimator=60),
    ]
    config = {"PREPROCESS_TRANSFORMS": transforms, "FINGERPRINT_FEATURE": False}
    members = fit(checkpoint, config, context, categorical=[3, 4, 5])
    assert any(member.feature_indices is not None for member in members)
    check(members, np.concatenate([context[:5], rng.normal(size=(20, 200)) * 3]))


def test_narrow(checkpoint: Path) -> None:
    context = table(80, seed=0)[:, :1]
    for name in ("v2", "v2_regression", "demo"):
        check(fit(checkpoint, preset(name), context, categorical=[]), odd_rows()[:, :1])


def test_polynomial(checkpoint: Path) -> None:
    config = {**preset("v2_regression"), "POLYNOMIAL_FEATURES": 5}
    rows = odd_rows()
    rows[6] = 1e30
    check(fit(checkpoint, config, table(120, seed=0)), rows)


def test_extrapolation_in_torch(checkpoint: Path) -> None:
    transforms = [PreprocessorConfig("quantile_uni_extrapolate", categorical_name="numeric")]
    config = {"PREPROCESS_TRANSFORMS": transforms, "FINGERPRINT_FEATURE": True, "ENABLE_GPU_PREPROCESSING": True}
    check(fit(checkpoint, config, table(120, seed=0), num_members=2), odd_rows())


def test_demo_model(demo_definition: ModelDefinition) -> None:
    """On the first rows of its context: the embedded checkpoint's own preset, a fraud table's columns."""
    whole = demo_definition.context
    context = replace(
        whole, cells={name: cells[:300] for name, cells in whole.cells.items()}, target=whole.target[:300]
    )
    demo_definition = replace(demo_definition, context=context)
    records = [{name: cells[row] for name, cells in context.cells.items()} for row in range(context.num_rows)]
    frame = cleaning.context_frame(demo_definition, RowEncoder(context.columns).read(QueryTable.from_records(records)))
    estimator = tabpfn_estimators.build_estimator(demo_definition, frame, "fit_with_cache", "cpu", "float32")
    members = estimator.executor_.ensemble_members
    rows = cleaning.clean(estimator, frame[:60])
    rows[np.random.default_rng(0).random(rows.shape) < 0.1] = np.nan
    preprocessing = check(members, rows)
    assert preprocessing.groups == (tuple(range(len(members))),)
    (output,) = preprocessing(rows)
    assert output.shape == (len(members), 60, preprocessing.widths[0])
    assert output.is_contiguous()


@settings(max_examples=8)
@given(
    name=st.sampled_from(PRESETS),
    seed=st.integers(0, 2**31),
    num_rows=st.integers(30, 150),
    num_features=st.integers(1, 8),
    missing=st.sampled_from([0.0, 0.1, 0.5]),
    regression=st.booleans(),
    in_torch=st.booleans(),
)
def test_any_table(
    checkpoint: Path,
    name: str,
    seed: int,
    num_rows: int,
    num_features: int,
    missing: float,
    regression: bool,
    in_torch: bool,
) -> None:
    context = table(num_rows, seed, missing=missing)[:, :num_features]
    context[:2, 0] = 0, 1  # a table of constants alone is refused
    categorical = [column for column in (4, 5) if column < num_features]
    config = {**preset(name), "ENABLE_GPU_PREPROCESSING": in_torch}
    members = fit(checkpoint, config, context, regression=regression, num_members=3, categorical=categorical)
    check(members, odd_rows(seed + 1)[:, :num_features])
