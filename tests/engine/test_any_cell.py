"""No cell that passes the encoder can fail a batch: each row is refused with its place, or answered with numbers."""

from __future__ import annotations

import dataclasses
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from estimators import DEMO, imported
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from models import definition, records
from tabpfn import TabPFNClassifier
from tabpfn.checkpoint import Checkpoint, save_as_safetensors
from tabpfn.preprocessing.configs import PreprocessorConfig

from serve.core import Batch, Column, ColumnKind, Context, ModelDefinition, QueryTable, Scalar, Task
from serve.core.errors import InvalidInput
from serve.engine.cell_readers import MAX_MAGNITUDE
from serve.engine.coding import feature_names
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.worker.client import make_handle
from serve.engine.worker.server import describe_context
from training.checkpoint import INFERENCE_CONFIG

NUM_EXAMPLES = int(os.environ.get("ANY_CELL_EXAMPLES", "10"))
"""Tables per recipe; a long run sets it."""

RECIPES: dict[str, dict[str, Any]] = {
    "none": {"name": "none", "categorical_name": "onehot"},
    "robust": {"name": "robust", "global_transformer_name": "svd"},
    "power": {"name": "power", "categorical_name": "numeric", "global_transformer_name": "svd_quarter_components"},
    "safepower": {"name": "safepower", "append_original": True},
    "safepower_box": {"name": "safepower_box", "categorical_name": "ordinal"},
    "quantile_uni": {"name": "quantile_uni", "append_original": "auto", "global_transformer_name": "svd"},
    "quantile_norm": {"name": "quantile_norm", "global_transformer_name": "svd"},
    "squashing": {"name": "squashing_scaler_default", "categorical_name": "ordinal_very_common_categories_shuffled"},
    "kdi": {"name": "kdi", "categorical_name": "numeric", "global_transformer_name": "svd"},
    "norm_and_kdi": {"name": "norm_and_kdi", "categorical_name": "ordinal_shuffled"},
}
LIMITED = ("kdi", "norm_and_kdi")


def config(recipe: str) -> dict[str, Any]:
    return {
        "PREPROCESS_TRANSFORMS": [PreprocessorConfig(**RECIPES[recipe])],
        "FINGERPRINT_FEATURE": True,
        "POLYNOMIAL_FEATURES": 3 if recipe == "none" else "no",
    }


COLUMNS = (
    Column("amount", ColumnKind.NUMBER),
    Column("share", ColumnKind.NUMBER),
    Column("ratio", ColumnKind.NUMBER),
    Column("country", ColumnKind.CATEGORY),
    Column("seen_at", ColumnKind.DATETIME),
)


def model(checkpoint: Path, num_rows: int = 60) -> ModelDefinition:
    """Its numbers are skewed, narrow, and narrow far from zero: of the latter two, powers overflow soon."""
    rng = np.random.default_rng(0)
    others = records(num_rows, seed=1)
    cells: dict[str, Sequence[Scalar]] = {
        "amount": [row["amount"] for row in others],
        "share": (1e-3 * rng.normal(size=num_rows)).tolist(),
        "ratio": (1 - 1e-3 * rng.exponential(size=num_rows)).tolist(),
        "country": [row["country"] for row in others],
        "seen_at": [row["seen_at"] for row in others],
    }
    target = [str(int(share > 0)) for share in cells["share"]]  # type: ignore[operator]
    base = definition(checkpoint)
    options = dataclasses.replace(base.options, num_members=2)
    context = Context(Task.CLASSIFICATION, COLUMNS, cells, target)
    return dataclasses.replace(base, context=context, options=options, example=None)


Fit = Callable[[str], TabPFNContext]


@pytest.fixture(scope="module")
def fit_context(engine: TabPFNEngine, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Fits a context by a recipe that its checkpoint states."""

    @cache
    def fit(recipe: str) -> TabPFNContext:
        content: Any = Checkpoint(checkpoint).load()
        content["inference_config"] = dataclasses.asdict(dataclasses.replace(INFERENCE_CONFIG, **config(recipe)))
        path = tmp_path_factory.mktemp(recipe) / "random-v3.5.safetensors"
        save_as_safetensors(content, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transforms about columns of few values
            return engine.fit(model(path))

    return fit


NUMBERS = st.one_of(
    st.floats(),
    st.floats(-1e4, 1e4),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-40, MAX_MAGNITUDE, -MAX_MAGNITUDE, 1.7976931348623157e308]),
    st.integers(-38, 38).map(lambda power: 10.0**power),
    st.integers(-38, 38).map(lambda power: -(10.0**power)),
    st.integers(),
    st.booleans(),
    st.none(),
)
CELLS = {
    ColumnKind.NUMBER: NUMBERS,
    ColumnKind.CATEGORY: st.one_of(st.sampled_from(["DE", "FR"]), st.text(max_size=4), NUMBERS),
    ColumnKind.DATETIME: st.none() | st.datetimes().map(lambda moment: moment.isoformat()),
}
ROWS = st.lists(st.fixed_dictionaries({column.name: CELLS[column.kind] for column in COLUMNS}), min_size=1, max_size=3)


def check(engine: TabPFNEngine, context: TabPFNContext, rows: list[dict[str, Any]]) -> bool:
    """Whether the rows were answered, the last as it is alone; if not, the refusal has a place."""
    encoded, refusal = None, InvalidInput("")
    try:
        encoded = context.encode(QueryTable.from_records(rows))
    except InvalidInput as error:
        refusal = error
    if encoded is None:
        assert refusal.row in range(len(rows))
        assert refusal.column in {column.name for column in context.columns}
        return False
    answers = engine.predict(Batch(context, encoded))
    assert answers.shape == (len(rows), context.num_outputs)
    assert np.isfinite(answers).all()
    np.testing.assert_allclose(engine.predict(Batch(context, encoded[-1:])), answers[-1:], rtol=0, atol=1e-6)
    return True


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_row_is_answered_or_refused_with_its_place(engine: TabPFNEngine, fit_context: Fit, recipe: str) -> None:
    context = fit_context(recipe)
    answered = []

    @seed(17)
    @settings(max_examples=NUM_EXAMPLES, database=None)
    @given(ROWS)
    def run(rows: list[dict[str, Any]]) -> None:
        answered.append(check(engine, context, rows))

    run()
    assert any(answered)


@pytest.mark.parametrize("recipe", LIMITED)
def test_a_number_at_the_limit_is_answered_and_one_beyond_it_is_refused(
    engine: TabPFNEngine, fit_context: Fit, recipe: str
) -> None:
    context = fit_context(recipe)
    names = feature_names(COLUMNS)
    plain: dict[str, Any] = {"amount": 20.0, "share": 0.0, "ratio": 1.0, "country": "DE", "seen_at": "2026-03-12"}
    limited = []
    for name, coding in zip(names, context.encoder.codings or (), strict=True):
        if name in plain and coding.limits is not None:
            limited.append(name)
            for end in coding.limits:
                assert check(engine, context, [plain, {**plain, name: end}])
                if abs(end) < MAX_MAGNITUDE:
                    with pytest.raises(InvalidInput, match="preprocessing can transform") as refusal:
                        context.encode(QueryTable.from_records([plain, {**plain, name: end * 1.0001}]))
                    assert (refusal.value.code, refusal.value.row, refusal.value.column) == ("out_of_range", 1, name)
    assert limited


def test_an_estimator_of_the_store_has_the_same_limits(engine: TabPFNEngine, tmp_path: Path) -> None:
    """Also in the replica, whose encoder knows the context by a message of the worker."""
    cells = model(DEMO).context
    frame = pd.DataFrame({name: np.array(cells.cells[name]) for name in ("share", "ratio")})
    options: Any = {"n_estimators": 2, "fit_mode": "low_memory", "inference_config": config("kdi")}
    file = tmp_path / "model.pkl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tabpfn says once that a power stands in for kdi
        estimator = TabPFNClassifier(model_path=str(DEMO), device="cpu", **options).fit(frame, np.array(cells.target))
        file.write_bytes(pickle.dumps(estimator))
        context = engine.fit(imported(file, tmp_path / "made"))
    message, rows = describe_context(0, context)
    handle = make_handle(message, context.columns, rows)
    plain = {"share": 0.0, "ratio": 1.0}
    assert check(engine, context, [plain])
    for encoder in (context.encoder, handle.encoder):
        with pytest.raises(InvalidInput, match=r"row 1, column 'share'.*preprocessing can transform") as refusal:
            encoder.encode(QueryTable.from_records([plain, {**plain, "share": 1e38}]))
        assert (refusal.value.code, refusal.value.row, refusal.value.column) == ("out_of_range", 1, "share")
