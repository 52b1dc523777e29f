"""Recipes that refuse numbers far from their context, and columns of a tiny or a huge scale, are served."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from estimators import answers, engine, imported, records, served
from tabpfn import TabPFNClassifier
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import ModelDefinition
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.estimators import plausible

pytestmark = pytest.mark.filterwarnings(
    "ignore:Cannot use KDITransformer"
)  # a power transform stands in, as at every user

SCALES = {"usual": 1.0, "small": 1e-10, "smaller": 1e-20, "tiny": 1e-30, "huge": 1e30}


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({name: rng.normal(size=60) * scale for name, scale in SCALES.items()})
    rows["close"] = 1e9 + rng.integers(0, 30, 60) * 1e-5
    return rows


def fit(checkpoint: Path, recipes: list[str], fit_mode: str, path: Path) -> TabPFNClassifier:
    transforms = [PreprocessorConfig(name, categorical_name="ordinal_shuffled") for name in recipes]
    rows = table()
    estimator = TabPFNClassifier(
        model_path=str(checkpoint), device="cpu", n_estimators=len(recipes), random_state=3, fit_mode=fit_mode,
        inference_precision=torch.float32, kv_cache_precision="auto",
        inference_config={"PREPROCESS_TRANSFORMS": transforms},
    ).fit(rows, (rows["usual"] + rows["tiny"] * 1e30 > 0).astype(int))  # fmt: skip
    path.write_bytes(pickle.dumps(estimator))
    return estimator


def assert_served(definition: ModelDefinition, estimator: TabPFNClassifier) -> None:
    using = engine()
    context = using.fit(definition)
    check_parity(using, context, canary_rows(context.encode_context()), 1e-5)
    rows = table()[:4]
    np.testing.assert_allclose(served(using, context, records(rows)), answers(estimator, rows), rtol=0, atol=1e-5)
    assert definition.example is not None
    served(using, context, [definition.example])


@pytest.mark.parametrize("fit_mode", ["fit_with_cache", "fit_preprocessors"])
@pytest.mark.parametrize("recipe", ["kdi", "norm_and_kdi"])
def test_a_recipe_that_refuses_far_numbers(tmp_path: Path, checkpoint: Path, recipe: str, fit_mode: str) -> None:
    # with a second recipe that takes them, so that every member counts
    fit(checkpoint, ["none", recipe], fit_mode, tmp_path / "model.pkl")
    # tabpfn's own answers differ without the KV cache: one of these recipes makes a column of one value
    cached = fit(checkpoint, ["none", recipe], "fit_with_cache", tmp_path / "cached.pkl")
    assert_served(imported(tmp_path / "model.pkl", tmp_path / "made"), cached)


def test_the_numbers_lie_in_the_scale_of_the_column(tmp_path: Path, checkpoint: Path) -> None:
    estimator = fit(checkpoint, ["quantile_uni"], "fit_with_cache", tmp_path / "model.pkl")
    for position, (name, scale) in enumerate(SCALES.items()):
        numbers = plausible.plausible_numbers(estimator, position, 6)
        assert len(set(numbers)) > 2, name
        assert 0.1 * scale < np.abs(numbers).max() < 10 * scale, name


def test_kept_rows_give_numbers_that_differ(tmp_path: Path, checkpoint: Path) -> None:
    estimator = fit(checkpoint, ["none"], "low_memory", tmp_path / "model.pkl")
    rows = table()
    for position, name in enumerate(rows):
        numbers = np.array(plausible.plausible_numbers(estimator, position, 6))
        assert len(set(numbers)) == 5, name
        assert rows[name].min() <= numbers.min() < numbers.max() <= rows[name].max()
        assert not set(numbers[1:4]) & set(rows[name]) or name == "close", "they are no cells of a row"


def test_a_refused_number_is_left_out_alone(tmp_path: Path, checkpoint: Path) -> None:
    estimator = fit(checkpoint, ["none", "kdi"], "fit_with_cache", tmp_path / "model.pkl")
    members = estimator.executor_.ensemble_members
    rows = np.zeros((5, 6))
    rows[[1, 3], 1] = 1e7
    by_recipe = {member.config.preprocess_config.name: plausible.takes(member, rows).tolist() for member in members}
    assert by_recipe == {"none": [True] * 5, "kdi": [True, False, True, False, True]}
    kept = plausible.only_taken(estimator, [[0.0, 1.0], [1e7, 0.0, 1e-11], [1e7], [0.0], [0.0], [1e9]])
    assert kept[0] == [0.0, 1.0]
    assert kept[1] == [0.0, 1e-11]
    assert np.isnan(kept[2]).all(), "no number is left, and missing is always taken"
