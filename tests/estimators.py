"""Fitted estimators as users keep them, and what they answer; their table has categories, flags and missing values."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import joblib
import numpy as np
import pandas as pd
import torch
from tabpfn import TabPFNClassifier, TabPFNRegressor
from tabpfn.model_loading import save_fitted_tabpfn_model

from serve.core import Batch, Column, ColumnKind, Context, ModelDefinition, QueryTable, Task
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.estimators import importer
from serve.settings import EngineSettings
from serve.store.folder import EMBEDDED

DEMO = EMBEDDED / "checkpoints" / "demo-v3.5.safetensors"
FIT_MODES = ("low_memory", "fit_preprocessors", "fit_with_cache")


def table(num_rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """Numbers, strings, categories that are numbers, few numbers, flags, a constant; cells are missing."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "amount": rng.lognormal(3, 1, num_rows),
            "country": rng.choice(["DE", "FR", "NL"], num_rows),
            "code": pd.Categorical(rng.integers(10, 14, num_rows)),
            "few": rng.integers(0, 3, num_rows).astype(float),
            "flag": rng.random(num_rows) < 0.5,
            "same": np.ones(num_rows),
        }
    )
    rows.loc[::9, "amount"] = np.nan
    rows.loc[::11, "country"] = None
    rows.loc[::13, "code"] = np.nan
    return rows


def query(num_rows: int = 6) -> pd.DataFrame:
    """Other rows, in some of them values that the table lacks."""
    rows = table(num_rows, seed=7)
    rows.loc[3, "country"] = "XX"
    rows.loc[4, "few"] = 7.0
    return rows


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as a caller would post them."""
    return [
        {name: None if pd.isna(cell) else getattr(cell, "item", lambda cell=cell: cell)() for name, cell in row.items()}
        for row in rows.to_dict("records")
    ]


def fitted(task: Task, checkpoint: Path = DEMO, fit_mode: str = "fit_with_cache", **options: Any) -> Any:
    rows = table()
    amount = rows["amount"].fillna(0).to_numpy()
    settings = {
        "device": "cpu", "n_estimators": 4, "random_state": 3, "inference_precision": torch.float32, **options
    }  # fmt: skip
    kind = TabPFNClassifier if task is Task.CLASSIFICATION else TabPFNRegressor
    target = (amount > 20).astype(int) if task is Task.CLASSIFICATION else amount * 2
    return kind(model_path=str(checkpoint), fit_mode=fit_mode, **settings).fit(rows, target)


def answers(estimator: Any, rows: Any) -> np.ndarray[Any, Any]:
    """Each row's probabilities, or mean, alone."""
    alone = [rows[i : i + 1] for i in range(len(rows))]
    with warnings.catch_warnings():
        # tabpfn judges a column's type by the row that it is given; with a missing cell there is none to see
        warnings.filterwarnings("ignore", message="Column.*have a dtype at predict time that differs")
        if hasattr(estimator, "classes_"):
            return np.concatenate([estimator.predict_proba(row) for row in alone])
        return np.concatenate([estimator.predict(row) for row in alone])[:, None]


def _pickle(estimator: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(estimator))


def _cuda_pickle(estimator: Any, path: Path) -> None:
    """As it comes from a GPU: every storage says `cuda:0`, so do the executor and the estimator."""
    again = pickle.loads(pickle.dumps(estimator))
    device = torch.device("cuda:0")
    again.devices_, again.device = (device,), "cuda"
    for cache in again.executor_.model_caches:
        cache._models = {device: cache.get_any()}
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):
        _pickle(again, path)


WRITERS: Mapping[str, Callable[[Any, Path], Any]] = {
    "model.pkl": _pickle,
    "model.joblib": joblib.dump,
    "compressed.joblib": lambda estimator, path: joblib.dump(estimator, path, compress=("xz", 1)),
    "model.tabpfn_fit": save_fitted_tabpfn_model,
    "cuda.pkl": _cuda_pickle,
}


def outcome(file: Path, folder: Path) -> dict[str, Any]:
    """What the child says, without a process of its own."""
    folder.mkdir(exist_ok=True)
    importer.main(file, folder, DEMO)
    return dict(json.loads((folder / importer.OUTCOME).read_text()))


def imported(file: Path, folder: Path) -> ModelDefinition:
    """The definition that the store makes of it."""
    said = outcome(file, folder)
    assert "facts" in said, said
    facts = said["facts"]
    columns = tuple(Column(entry["name"], ColumnKind(entry["kind"])) for entry in facts["columns"])
    hidden = facts["num_context_rows"]
    return ModelDefinition(
        name="imported",
        version="1",
        context=Context(Task(facts["task"]), columns, {}, (), num_hidden_rows=hidden),
        checkpoint_path=str(folder / "checkpoint.safetensors"),
        checkpoint_name="some",
        licence="some",
        example=facts["example"],
        estimator_path=str(folder / "estimator.pickle"),
    )


def engine(**settings: Any) -> TabPFNEngine:
    return TabPFNEngine(EngineSettings(**settings), max_batch_rows=64)


def served(using: TabPFNEngine, context: TabPFNContext, posted: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, Any]:
    """As `answers`, by the engine, all rows in one batch."""
    outputs = using.predict(Batch(context, context.encode(QueryTable.from_records(posted))))
    return outputs if context.classes else outputs[:, :1]
