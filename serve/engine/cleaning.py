"""tabpfn's fitted cleaning step, read off as one `Coding` per column, so that a request is encoded without pandas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tabpfn.preprocessing.clean import clean_data_transform
from tabpfn.preprocessing.datamodel import FeatureModality
from tabpfn.validation import ensure_compatible_predict_input_sklearn

from serve.core import Matrix, ModelDefinition
from serve.engine.row_encoder import Coding, RawCell, feature_names
from serve.engine.tabpfn_estimators import Estimator

_UNSEEN = "\x00 a category that no context holds"


def context_frame(definition: ModelDefinition, raw: Sequence[Sequence[RawCell]]) -> pd.DataFrame:
    """The raw cells, one list per column, as tabpfn takes them: numbers as float64, categories as objects."""
    columns = {}
    for position, name in enumerate(feature_names(definition.context.columns)):
        cells = raw[position]
        is_number = all(isinstance(cell, float) for cell in cells)
        columns[name] = pd.Series(cells, dtype="float64" if is_number else "object")
    return pd.DataFrame(columns)


def clean(estimator: Estimator, frame: pd.DataFrame) -> Matrix:
    """The frame after tabpfn's own cleaning step, as at predict time: float64 [rows, features]."""
    cleaned = clean_data_transform(
        ensure_compatible_predict_input_sklearn(frame, estimator),
        cat_indices=estimator.inferred_feature_schema_.indices_for(FeatureModality.CATEGORICAL),
        ord_encoder=estimator.ordinal_encoder_,
    )
    return np.asarray(cleaned, dtype=np.float64)


def learn_codings(estimator: Estimator, frame: pd.DataFrame) -> list[Coding]:
    """The coding of each matrix column, learned by cleaning every value that the context holds.

    That is safer than repeating tabpfn's rules: which numbers it takes for categories, where a missing value sorts,
    what an unknown value becomes. Whatever the rules of this release are, the codings follow them.
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
    # a number that no row holds: the largest number plus one
    unseen = max(values, default=0.0) + 1.0 if is_number else _UNSEEN
    probe = frame.iloc[np.zeros(len(values) + 2, int)].reset_index(drop=True)
    probe.isetitem(position, pd.Series([*values, unseen, math.nan if is_number else None], dtype=column.dtype))
    codes = [float(code) for code in clean(estimator, probe)[:, position]]
    return Coding(codes=dict(zip(values, codes, strict=False)), unknown=codes[-2], missing=codes[-1])
