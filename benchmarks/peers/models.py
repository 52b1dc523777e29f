"""The demo model as a peer's server holds it: by the tabpfn package, as its users do, or by the compiled engine.

`tabpfn-uncached` and `tabpfn` are tabpfn's classifier with its own defaults, fed a DataFrame, without and with its KV
cache. `tabpfn-float32` is the cached one in float32: the reference. `compiled` is TabPFNEngine behind the same call.
All answer the same question: probabilities, corrected to the true share of fraud. `tabpfn_estimators.TabPFNClassifier`
is the class of the tabpfn package; the module only keeps it from the internet.

`gpu-like` is TabPFNEngine with a simulated device and made-up answers, for `benchmarks.online.gpu_like` alone.
"""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.peers.servers.options import ENGINE_VARIABLE, GPU_LIKE, MAX_BATCH_ROWS, THREADS_VARIABLE
from serve.core import Batch, ModelDefinition, QueryTable
from serve.engine import tabpfn_estimators
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings, StoreSettings
from serve.store import FolderStore

Records = Sequence[Mapping[str, Any]]
Probabilities = list[list[float]]
Predict = Callable[[Records], Probabilities]
PredictAll = Callable[[Sequence[Records]], list[Probabilities]]

_WARM_UP_ROWS = (64, 8, 1)


def load_from_environment() -> Predict:
    """The model that the environment of this process names."""
    return load(os.environ[ENGINE_VARIABLE], int(os.environ[THREADS_VARIABLE]))


def load_batched() -> PredictAll:
    """The same, to answer several requests by one call."""
    return functools.partial(predict_all, load_from_environment())


def load(kind: str, num_threads: int) -> Predict:
    """Fit the demo model and answer a few rows, so that no caller waits for a warm-up."""
    definition = FolderStore(StoreSettings()).load("fraud")
    if kind in ("compiled", GPU_LIKE):
        predict = _by_engine(definition, _engine(kind, num_threads))
    else:
        predict = _tabpfn(definition, kind, num_threads)
    for rows in _WARM_UP_ROWS if kind != "tabpfn-uncached" else (1,):
        predict([definition.example or {}] * rows)
    return predict


def predict_all(predict: Predict, requests: Sequence[Records]) -> list[Probabilities]:
    """Answer several requests by one call of the model."""
    answers = iter(predict([record for records in requests for record in records]))
    return [list(itertools.islice(answers, len(records))) for records in requests]


def _tabpfn(definition: ModelDefinition, kind: str, num_threads: int) -> Predict:
    torch.set_num_threads(num_threads)
    context = definition.context
    frame = pd.DataFrame({column.name: context.cells[column.name] for column in context.columns})
    target = np.asarray(context.target)
    classifier = tabpfn_estimators.TabPFNClassifier(
        model_path=definition.checkpoint_path,
        device="cpu",
        fit_mode="fit_preprocessors" if kind == "tabpfn-uncached" else "fit_with_cache",
        n_estimators=definition.options.num_members,
        random_state=definition.options.random_state,
        categorical_features_indices=[i for i, c in enumerate(context.columns) if c.kind != "number"],
        inference_precision=torch.float32 if kind == "tabpfn-float32" else "auto",
        kv_cache_precision="auto",  # the forward's precision: faster than the default, int8
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Running on CPU with more than")
        classifier.fit(frame, target)
    priors = context.class_priors or {}
    weights = np.array([priors[label] / np.mean(target == label) for label in classifier.classes_])

    def predict(records: Records) -> Probabilities:
        # with the context's column types, which one row alone does not determine
        rows = pd.DataFrame(records, columns=frame.columns).astype(frame.dtypes)
        weighted = classifier.predict_proba(rows) * weights
        answers: Probabilities = (weighted / weighted.sum(axis=1, keepdims=True)).tolist()
        return answers

    return predict


def _engine(kind: str, num_threads: int) -> TabPFNEngine:
    settings = EngineSettings(num_threads=num_threads)
    if kind == GPU_LIKE:
        from benchmarks.online.gpu_like_engine import GpuLikeEngine

        return GpuLikeEngine(settings, max_batch_rows=MAX_BATCH_ROWS)
    return TabPFNEngine(settings, max_batch_rows=MAX_BATCH_ROWS)


def _by_engine(definition: ModelDefinition, engine: TabPFNEngine) -> Predict:
    context = engine.fit(definition)

    def predict(records: Records) -> Probabilities:
        rows = context.encode(QueryTable.from_records(records))
        answers: Probabilities = []
        for first in range(0, len(rows), MAX_BATCH_ROWS):
            answers += engine.predict(Batch(context, rows[first : first + MAX_BATCH_ROWS])).tolist()
        return answers

    return predict
