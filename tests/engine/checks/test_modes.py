"""tabpfn's answers with and without its KV cache: where they differ is found, and nothing else is."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from models import write_tiny
from tabpfn import TabPFNClassifier, TabPFNRegressor
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import Column, ColumnKind, Context, EnsembleOptions, Matrix, ModelDefinition, Task
from serve.engine import tabpfn_estimators
from serve.engine.checks import modes
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings

NUM_ROWS = 60
DEGENERATE = ("one_and_missing", "tiny", "close", "constant")


def context(*columns: str) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "usual": rng.normal(size=NUM_ROWS),
            "other": rng.lognormal(size=NUM_ROWS),
            "one_and_missing": np.where(np.arange(NUM_ROWS) % 7 == 0, np.nan, 2.5),
            "tiny": rng.normal(size=NUM_ROWS) * 1e-25,
            "close": 1e9 + rng.integers(0, 30, NUM_ROWS) * 1e-5,
            "constant": np.full(NUM_ROWS, 2.5),
            "small": rng.normal(size=NUM_ROWS) * 1e-10,
        }
    )
    return rows[["usual", "other", *columns]]


def fit(checkpoint: Path, rows: pd.DataFrame, fit_mode: str, task: Task, **options: Any) -> Any:
    kind = TabPFNClassifier if task is Task.CLASSIFICATION else TabPFNRegressor
    target = rows.iloc[:, 0] + rows.iloc[:, 1]
    settings = {"n_estimators": 2, "random_state": 3, "inference_precision": torch.float32, **options}
    return kind(model_path=str(checkpoint), device="cpu", fit_mode=fit_mode, kv_cache_precision="auto", **settings).fit(
        rows, (target > target.median()).astype(int) if task is Task.CLASSIFICATION else target
    )


def asked(rows: pd.DataFrame) -> Matrix:
    """Rows of the context, and such rows with another value, or none, in each column."""
    base = rows.to_numpy()[:3]
    changed = [base]
    for column in range(rows.shape[1]):
        for value in (np.nan, 7.0, rows.iloc[1, column]):
            row = base[1:2].copy()
            row[0, column] = value
            changed.append(row)
    return np.concatenate(changed)


def alone(estimator: Any, rows: Matrix) -> Matrix:
    matrices = tabpfn_estimators.on_matrices(estimator)
    return np.concatenate([tabpfn_estimators.predict_outputs(matrices, rows[i : i + 1]) for i in range(len(rows))])


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.REGRESSION])
@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v2_5", "tabpfn_v2_6", "tabpfn_v3", "tabpfn_v3_5"])
def test_rows_that_differ_are_those_that_tabpfn_answers_otherwise(
    tmp_path: Path, architecture: str, task: Task
) -> None:
    suffix = architecture.removeprefix("tabpfn_").replace("_", ".")
    checkpoint = write_tiny(architecture, tmp_path / f"tiny-{suffix}.safetensors", task)
    has_rule = not architecture.startswith("tabpfn_v3")
    # far beyond a column of one value v3 magnifies the last bit of a number, with the cache and without
    rows = context(*DEGENERATE) if has_rule else context("one_and_missing", "constant")
    estimator = fit(checkpoint, rows, "fit_preprocessors", task)
    cached = fit(checkpoint, rows, "fit_with_cache", task)
    queries = asked(rows)
    without, expected = alone(estimator, queries), alone(cached, queries)
    scale = 1 if task is Task.CLASSIFICATION else np.abs(expected).max()
    difference = np.abs(without - expected).max(axis=1) / scale
    differs = modes.rows_that_differ(estimator, queries)
    assert difference[~differs].max(initial=0) < 5e-6
    if not has_rule:
        assert not differs.any()
    else:
        assert difference[differs].max() > 1e-4
        assert not differs[:3].any(), "rows of the context are answered alike"
    assert not modes.rows_that_differ(cached, queries).any(), "its context is gone"
    answered = modes.predict_uncached(estimator, queries, lambda: cached)
    np.testing.assert_allclose(answered, expected, rtol=0, atol=5e-6 * scale)


@pytest.mark.filterwarnings("ignore:Cannot use KDITransformer")
def test_a_scale_of_rounding_errors_makes_all_rows_differ(tmp_path: Path) -> None:
    """A recipe may make one value of a column; tabpfn then divides by the rounding error of its mean."""
    checkpoint = write_tiny("tabpfn_v3_5", tmp_path / "tiny-v3.5.safetensors", Task.CLASSIFICATION)
    recipe = {"PREPROCESS_TRANSFORMS": [PreprocessorConfig("norm_and_kdi", categorical_name="ordinal_shuffled")]}
    rows = context("small")[["usual", "small"]]
    # several members are joined into one array, which has one layout
    options = {"inference_config": recipe, "n_estimators": 1}
    estimator = fit(checkpoint, rows, "fit_preprocessors", Task.CLASSIFICATION, **options)
    cached = fit(checkpoint, rows, "fit_with_cache", Task.CLASSIFICATION, **options)
    queries = rows.to_numpy()[:4]
    assert np.abs(alone(estimator, queries) - alone(cached, queries)).max() > 1e-4
    assert modes.rows_that_differ(estimator, queries).all()
    probes = np.repeat(queries[:1], 2, axis=0)
    probes[[0, 1], [0, 1]] = 7.0
    assert modes.columns_that_differ(estimator, queries[0], probes, np.arange(2)) == [1]


def test_a_missing_cell_far_from_zero_makes_its_row_differ(tmp_path: Path) -> None:
    """The mean of 1e6 has a last bit of 0.06, and the two modes sum in two orders."""
    checkpoint = write_tiny("tabpfn_v3", tmp_path / "tiny-v3.safetensors", Task.CLASSIFICATION)
    rows = context("small")[["usual"]]
    rows["far"] = 1e6 + rows["usual"].to_numpy()[::-1]
    estimator = fit(checkpoint, rows, "fit_preprocessors", Task.CLASSIFICATION)
    queries = rows.to_numpy()[:4].copy()
    queries[1, 0] = queries[2, 1] = np.nan
    assert modes.rows_that_differ(estimator, queries).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("architecture", "ranks"), [("tabpfn_v3_5", True), ("tabpfn_v3", False)])
def test_a_mean_that_is_a_value_of_the_context_makes_its_missing_cells_differ(
    tmp_path: Path, architecture: str, ranks: bool
) -> None:
    suffix = architecture.removeprefix("tabpfn_").replace("_", ".")
    checkpoint = write_tiny(architecture, tmp_path / f"tiny-{suffix}.safetensors", Task.CLASSIFICATION)
    half = np.linspace(0.1, 3, (NUM_ROWS - 2) // 2)
    rows = context().assign(other=np.concatenate([-half, [0, 0], half]))
    rows_asked = np.array([[0.5, 1.0], [0.5, np.nan]])
    options = {"inference_config": {"PREPROCESS_TRANSFORMS": [PreprocessorConfig("none")]}}
    estimator = fit(checkpoint, rows, "low_memory", Task.CLASSIFICATION, **options)
    assert modes.rows_that_differ(estimator, rows_asked).tolist() == [False, ranks]
    rows.loc[3, "other"] = rows.loc[len(half) + 5, "other"] = np.nan
    estimator = fit(checkpoint, rows, "low_memory", Task.CLASSIFICATION, **options)
    assert modes.rows_that_differ(estimator, rows_asked).tolist() == [ranks, ranks]


@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v2_6"])
def test_a_context_with_such_columns_starts(tmp_path: Path, architecture: str) -> None:
    suffix = architecture.removeprefix("tabpfn_").replace("_", ".")
    checkpoint = write_tiny(architecture, tmp_path / f"tiny-{suffix}.safetensors", Task.CLASSIFICATION)
    rows = context(*DEGENERATE)
    definition = ModelDefinition(
        name="tiny", version="1",
        context=Context(
            Task.CLASSIFICATION, tuple(Column(name, ColumnKind.NUMBER) for name in rows),
            {name: rows[name].tolist() for name in rows}, [str(cell > 0) for cell in rows["usual"]],
        ),
        checkpoint_path=str(checkpoint), checkpoint_name="random", licence="Apache-2.0",
        options=EnsembleOptions(num_members=2),
    )  # fmt: skip
    engine = TabPFNEngine(EngineSettings(), max_batch_rows=16)
    fitted = engine.fit(definition)
    canaries = canary_rows(fitted.encode_context())
    canaries[:, 2:] = [np.nan, np.nan, 1e9 + 7, np.nan]
    assert check_parity(engine, fitted, canaries, 1e-5) < 1e-5
