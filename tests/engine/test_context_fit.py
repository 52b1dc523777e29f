"""The start compares with tabpfn's answer to each row alone, so a model starts whose fingerprints change in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from models import write_tiny

from serve.core import Batch, Column, ColumnKind, Context, EnsembleOptions, Matrix, ModelDefinition, Task
from serve.engine import tabpfn_estimators
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings

FIT_MODES = ("low_memory", "fit_preprocessors", "fit_with_cache")
TOLERANCE = EngineSettings().allowed_difference


def correlated(checkpoint: Path, task: Task, seed: int) -> ModelDefinition:
    """A model of 30 columns that follow three hidden numbers: most of its SVD is the rounding of its products."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(80, 3)) @ rng.normal(size=(3, 30)) * 1e3 + 1e5
    columns = tuple(Column(f"c{number}", ColumnKind.NUMBER) for number in range(30))
    cells = {column.name: table[:, number].tolist() for number, column in enumerate(columns)}
    target = [str(row % 2) for row in range(80)] if task is Task.CLASSIFICATION else table[:, 0].tolist()
    return ModelDefinition(
        name="correlated",
        version="1",
        context=Context(task, columns, cells, target),
        checkpoint_path=str(checkpoint),
        checkpoint_name="random-v2",
        licence="Apache-2.0",
        options=EnsembleOptions(num_members=2, random_state=seed),
        example={},
    )


def by_tabpfn(model: ModelDefinition, rows: Matrix) -> tuple[Matrix, Matrix]:
    """The library's answers through a DataFrame, without a KV cache: each row alone, and all in one batch."""
    frame = pd.DataFrame(dict(model.context.cells))
    estimator = tabpfn_estimators.build_estimator(model, frame, "fit_preprocessors", "cpu", "float32")
    asked = [pd.DataFrame(part, columns=frame.columns) for part in (*np.split(rows, len(rows)), rows)]
    *alone, together = [tabpfn_estimators.predict_outputs(estimator, part) for part in asked]
    return np.concatenate(alone), together


def difference(one: Matrix, other: Matrix) -> float:
    """As the parity check measures it, for both tasks."""
    return float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))


@pytest.fixture(scope="module", params=list(Task))
def flipping(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelDefinition, Matrix]:
    """A model whose canary rows tabpfn answers otherwise in a batch than alone, and the answers alone.

    It has the preset of the released v2: an SVD and a fingerprint. Which table shows it depends on the processor.
    """
    checkpoint = write_tiny("tabpfn_v2", tmp_path_factory.mktemp("v2") / "v2.safetensors", request.param)
    for seed in range(60):
        model = correlated(checkpoint, request.param, seed)
        alone, together = by_tabpfn(model, canary_rows(np.array(list(model.context.cells.values())).T))
        if difference(alone, together) > 1.5 * TOLERANCE:
            return model, alone
    pytest.fail("no table of 60 shows that tabpfn's fingerprints change")


@pytest.mark.parametrize("backend", ["compiled", "tabpfn"])
def test_a_model_whose_fingerprints_change_in_tabpfns_batches_starts(
    flipping: tuple[ModelDefinition, Matrix], backend: str
) -> None:
    model, alone = flipping
    engine = TabPFNEngine(EngineSettings.model_validate({"backend": backend}), max_batch_rows=8)
    context = engine.fit(model)
    assert context.backend == backend
    rows = canary_rows(context.encode_context())
    check_parity(engine, context, rows, TOLERANCE)
    assert difference(alone, context.answer_uncached(rows)) < 1e-6
    assert difference(alone, engine.predict(Batch(context, rows))) < TOLERANCE


@pytest.mark.parametrize("fit_mode", FIT_MODES)
@pytest.mark.parametrize("in_torch", [False, True])
def test_each_row_is_answered_as_alone_in_any_fit_mode(
    flipping: tuple[ModelDefinition, Matrix], fit_mode: Any, in_torch: bool
) -> None:
    """Where torch hashes the rows, inside the forward pass, too."""
    model, _ = flipping
    estimator = tabpfn_estimators.unfitted_estimator(model, fit_mode, "cpu", "float32")
    estimator.set_params(inference_config={"ENABLE_GPU_PREPROCESSING": in_torch})
    frame = pd.DataFrame(dict(model.context.cells))
    clean = tabpfn_estimators.on_matrices(tabpfn_estimators.fit_estimator(estimator, model, frame))
    rows = canary_rows(frame.to_numpy())
    alone = np.concatenate([tabpfn_estimators.predict_outputs(clean, row) for row in np.split(rows, len(rows))])
    assert difference(alone, tabpfn_estimators.predict_each_alone(clean, rows)) < 1e-6
    assert not any("transform_X_test" in vars(member) for member in getattr(clean.executor_, "ensemble_members", []))
