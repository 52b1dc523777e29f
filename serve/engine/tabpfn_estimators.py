"""Builds tabpfn's estimators without internet, and asks fitted ones for answers.

A request must never wait for a download, a browser or a licence dialogue. So this module shuts out the internet before
it imports tabpfn, and a checkpoint is always a file with an absolute path.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

os.environ["TABPFN_NO_BROWSER"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import torch
from tabpfn import TabPFNClassifier, TabPFNRegressor
from tabpfn.preprocessing.torch.steps import TorchAddFingerprintFeaturesStep

from serve.core import QUANTILES, ColumnKind, Matrix, ModelDefinition, Task
from serve.engine.coding import feature_names

Estimator: TypeAlias = Any
"""`TabPFNClassifier | TabPFNRegressor`; the attributes used here are not part of their typed surface."""
FitMode = Literal["fit_with_cache", "fit_preprocessors"]


def build_estimator(
    definition: ModelDefinition, frame: pd.DataFrame, fit_mode: FitMode, device: str, precision: str
) -> Estimator:
    """A fitted tabpfn estimator.

    Args:
        frame: the context (`cleaning.context_frame`).
        device: `cpu` or `cuda:N`.
        precision: "auto", or the name of a torch dtype.
    """
    return fit_estimator(unfitted_estimator(definition, fit_mode, device, precision), definition, frame)


def unfitted_estimator(definition: ModelDefinition, fit_mode: FitMode, device: str, precision: str) -> Estimator:
    """A tabpfn estimator with the definition's options; arguments as for `build_estimator`."""
    options, context = definition.options, definition.context
    names = feature_names(context.columns)
    categorical = [c.name for c in context.columns if c.kind in (ColumnKind.CATEGORY, ColumnKind.TEXT)]
    settings: dict[str, Any] = {
        "model_path": definition.checkpoint_path,
        "device": device,
        "fit_mode": fit_mode,
        "n_estimators": options.num_members,
        "random_state": options.random_state,
        "categorical_features_indices": [names.index(name) for name in categorical],
        # "auto" would choose by free memory, so another process could change an answer
        "memory_saving_mode": False,
        "inference_precision": "auto" if precision == "auto" else getattr(torch, precision),
        "kv_cache_precision": "auto",
    }
    if options.softmax_temperature is not None:
        settings["softmax_temperature"] = options.softmax_temperature
    return (TabPFNClassifier if context.task is Task.CLASSIFICATION else TabPFNRegressor)(**settings)


def fit_estimator(estimator: Estimator, definition: ModelDefinition, frame: pd.DataFrame) -> Estimator:
    """Fit the estimator on the definition's context and target; returns the estimator."""
    # numpy's own strings lose NUL characters at their end, which would make one class of two
    dtype = object if definition.context.task is Task.CLASSIFICATION else np.float64
    with warnings.catch_warnings():
        # the operator named the device and knows the size of the context
        warnings.filterwarnings("ignore", message="Running on CPU with more than")
        return estimator.fit(frame, np.asarray(definition.context.target, dtype=dtype))


def on_matrices(estimator: Estimator) -> Estimator:
    """A view of a fitted estimator for rows that are clean already; it shares everything but the cleaning step."""
    view = copy.copy(estimator)
    view.ordinal_encoder_ = None
    if hasattr(view, "feature_names_in_"):
        del view.feature_names_in_
    return view


def class_names(estimator: Estimator) -> tuple[str, ...]:
    """A classifier's classes as the answers name them, in the order of its outputs; empty for a regressor.

    Whole numbers have no decimals and true is 1, as in the labels of a context that the store reads.
    """
    labels = [label.item() if isinstance(label, np.generic) else label for label in getattr(estimator, "classes_", ())]
    is_whole = [isinstance(label, bool) or (isinstance(label, float) and label.is_integer()) for label in labels]
    return tuple(str(int(label)) if whole else str(label) for label, whole in zip(labels, is_whole, strict=True))


def predict_outputs(estimator: Estimator, rows: Matrix) -> Matrix:
    """tabpfn's answer to rows: probabilities float64 [rows, classes], or `REGRESSION_STATISTICS` float64 [rows, 9]."""
    if isinstance(estimator, TabPFNClassifier):
        return np.asarray(estimator.predict_proba(rows), dtype=np.float64)
    answer = estimator.predict(rows, output_type="main", quantiles=list(QUANTILES))
    return np.stack([answer["mean"], answer["median"], *answer["quantiles"]], axis=1).astype(np.float64)


def predict_each_alone(estimator: Estimator, rows: Matrix) -> Matrix:
    """tabpfn's answer to each row as if it were asked for that row alone; shapes as for `predict_outputs`.

    A fingerprint hashes a row after the matrix product of an SVD, whose last bits depend on the number of rows. So in
    a batch tabpfn may give a row another fingerprint, and then another answer (docs/decisions/019). Here a row is
    prepared alone. Where possible, the prepared rows still share one forward pass, because without a KV cache each
    pass goes through the whole context.

    Args:
        estimator: a fitted one for clean rows (`on_matrices`), of any fit mode.
    """
    if not estimator.inference_config_.FINGERPRINT_FEATURE:
        return predict_outputs(estimator, rows)
    members = getattr(estimator.executor_, "ensemble_members", None)
    # the fit mode "low_memory" makes its members anew for each call; torch's steps run inside the forward pass
    if members is None or any(_hashes_in_forward(member) for member in members):
        return np.concatenate([predict_outputs(estimator, rows[i : i + 1]) for i in range(len(rows))])
    with _prepared_alone(members):
        return predict_outputs(estimator, rows)


def _hashes_in_forward(member: Any) -> bool:
    steps = [] if member.gpu_preprocessor is None else member.gpu_preprocessor.steps
    return any(isinstance(step, TorchAddFingerprintFeaturesStep) for step, _ in steps)


@contextlib.contextmanager
def _prepared_alone(members: Sequence[Any]) -> Iterator[None]:
    """Make the members prepare one row at a time."""
    try:
        for member in members:
            member.transform_X_test = partial(_transform_alone, member.transform_X_test)
        yield
    finally:
        for member in members:
            member.__dict__.pop("transform_X_test", None)


def _transform_alone(transform: Any, rows: Matrix) -> Matrix:
    return np.concatenate([transform(rows[i : i + 1]) for i in range(len(rows))])
