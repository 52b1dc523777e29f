"""The only door to tabpfn: builds its estimators without network, and takes their fitted cleaning step apart.

A request must never wait for a download, a browser or a licence dialogue, so the network is shut before tabpfn is
imported, and a checkpoint is always a file by its absolute path.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

os.environ["TABPFN_NO_BROWSER"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import torch
from tabpfn import TabPFNClassifier, TabPFNRegressor
from tabpfn.preprocessing.clean import clean_data_transform
from tabpfn.preprocessing.datamodel import FeatureModality
from tabpfn.validation import ensure_compatible_predict_input_sklearn

from serve.core import QUANTILES, ColumnKind, Matrix, ModelDefinition, Task
from serve.engine.row_encoder import Coding, RawCell, feature_names

Estimator: TypeAlias = Any
"""`TabPFNClassifier | TabPFNRegressor`; the attributes used here are not part of their typed surface."""
FitMode = Literal["fit_with_cache", "fit_preprocessors"]

UNSEEN = "\x00 a category that no context holds"


def build_estimator(
    definition: ModelDefinition, frame: pd.DataFrame, fit_mode: FitMode, device: str, precision: str
) -> Estimator:
    """A fitted estimator of the library on the context's frame (`context_frame`)."""
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
        # "auto" would choose by free memory, and so let a neighbour change an answer
        "memory_saving_mode": False,
        "inference_precision": torch.float32 if precision == "float32" else "auto",
        "kv_cache_precision": "auto",
    }
    if options.softmax_temperature is not None:
        settings["softmax_temperature"] = options.softmax_temperature
    kind = TabPFNClassifier if context.task is Task.CLASSIFICATION else TabPFNRegressor
    with warnings.catch_warnings():
        # the operator chose the device by name, and knows the size of the context
        warnings.filterwarnings("ignore", message="Running on CPU with more than")
        return kind(**settings).fit(frame, np.asarray(context.target))


def context_frame(definition: ModelDefinition, raw: Sequence[Sequence[RawCell]]) -> pd.DataFrame:
    """The context's raw cells as the library is given them: numbers as float64, categories as objects."""
    columns = {}
    for position, name in enumerate(feature_names(definition.context.columns)):
        cells = [row[position] for row in raw]
        is_number = all(isinstance(cell, float) for cell in cells)
        columns[name] = pd.Series(cells, dtype="float64" if is_number else "object")
    return pd.DataFrame(columns)


def clean(estimator: Estimator, frame: pd.DataFrame) -> Matrix:
    """What the library's own cleaning step makes of a frame at predict time; float64 [rows, features]."""
    cleaned = clean_data_transform(
        ensure_compatible_predict_input_sklearn(frame, estimator),
        cat_indices=estimator.inferred_feature_schema_.indices_for(FeatureModality.CATEGORICAL),
        ord_encoder=estimator.ordinal_encoder_,
    )
    return np.asarray(cleaned, dtype=np.float64)


def learn_codings(estimator: Estimator, frame: pd.DataFrame) -> list[Coding]:
    """Each column's coding, read off the fitted cleaning step by showing it every value that the context holds.

    Asking the library is safer than repeating its rules (which numbers it takes for categories, where a missing value
    sorts, what an unknown one becomes): whatever they are in this release, they are the ones that were fitted.
    """
    constants = getattr(estimator.ordinal_encoder_, "constant_values_", None) or {}
    encoded = set(estimator.ordinal_encoder_.selected_columns())
    codings = []
    for position, name in enumerate(frame.columns):
        if position in constants:
            codings.append(Coding(constant=float(clean(estimator, frame[:1])[0, position])))
        elif encoded & {position, name}:
            codings.append(_learn_coding(estimator, frame, position))
        else:
            codings.append(Coding())
    return codings


def _learn_coding(estimator: Estimator, frame: pd.DataFrame, position: int) -> Coding:
    column = frame.iloc[:, position]
    values = list(column.dropna().unique())
    is_number = column.dtype == np.float64
    # an unseen number must not be one by chance; no float is beyond the largest seen, plus one
    unseen = max(values, default=0.0) + 1.0 if is_number else UNSEEN
    probe = frame.iloc[np.zeros(len(values) + 2, int)].reset_index(drop=True)
    probe.isetitem(position, pd.Series([*values, unseen, math.nan if is_number else None], dtype=column.dtype))
    codes = [float(code) for code in clean(estimator, probe)[:, position]]
    return Coding(codes=dict(zip(values, codes, strict=False)), unknown=codes[-2], missing=codes[-1])


def on_matrices(estimator: Estimator) -> Estimator:
    """The same fitted estimator, for rows that are clean already: a view that shares all but the cleaning step."""
    view = copy.copy(estimator)
    view.ordinal_encoder_ = None
    if hasattr(view, "feature_names_in_"):
        del view.feature_names_in_
    return view


def predict_outputs(estimator: Estimator, rows: Matrix) -> Matrix:
    """Probabilities [rows, classes], or the regressor's `REGRESSION_STATISTICS` [rows, statistics]; float64."""
    if isinstance(estimator, TabPFNClassifier):
        return np.asarray(estimator.predict_proba(rows), dtype=np.float64)
    answer = estimator.predict(rows, output_type="main", quantiles=list(QUANTILES))
    return np.stack([answer["mean"], answer["median"], *answer["quantiles"]], axis=1).astype(np.float64)
