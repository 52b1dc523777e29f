"""tabpfn's fitted cleaning step, read off as one `Coding` per column, so that a request is encoded without pandas."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tabpfn.constants import NA_PLACEHOLDER
from tabpfn.preprocessing.clean import clean_data_transform
from tabpfn.preprocessing.datamodel import FeatureModality
from tabpfn.validation import ensure_compatible_predict_input_sklearn

from serve.core import Matrix, ModelDefinition
from serve.core.errors import InvalidModel
from serve.engine.category_texts import unmet_texts
from serve.engine.coding import Coding, RawCell, feature_names
from serve.engine.tabpfn_estimators import Estimator

_log = logging.getLogger(__name__)
_MAX_NAMED = 3
"""Categories that a line of the log names."""


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
    keeps_zero_sign = _keep_zero_signs(estimator, frame)
    codings = []
    for position, name in enumerate(frame.columns):
        if position in constants:
            codings.append(Coding(constant=float(clean(estimator, frame[:1])[0, position])))
        elif encoded & {position, name}:
            codings.append(_with_placeholder(_learn_coding(estimator, frame, position), estimator, frame, position))
        else:
            codings.append(Coding(keeps_zero_sign=keeps_zero_sign[position]))
    return codings


def _keep_zero_signs(estimator: Estimator, frame: pd.DataFrame) -> list[bool]:
    """Which columns stay -0.0 where a row of the frame's types is asked alone: [columns].

    tabpfn infers the type of a row's cells anew where a column of the frame holds strings. It then takes -0.0 for the
    integer 0.
    """
    row = frame[:1].copy()
    for position, dtype in enumerate(frame.dtypes):
        if dtype == np.float64:
            row.isetitem(position, pd.Series([-0.0], index=row.index))
    return [math.copysign(1, number) < 0 for number in clean(estimator, row)[0]]


def _learn_coding(estimator: Estimator, frame: pd.DataFrame, position: int) -> Coding:
    column = frame.iloc[:, position]
    values = list(column.dropna().unique())
    is_number = column.dtype == np.float64
    unseen: Sequence[RawCell] = _unseen_numbers(values) if is_number else _unseen_texts(values)
    probe = frame.iloc[np.zeros(len(values) + len(unseen) + 1, int)].reset_index(drop=True)
    cells = [*values, *unseen, math.nan if is_number else None]
    probe.isetitem(position, pd.Series(cells, dtype=column.dtype))
    *known, missing = [float(code) for code in clean(estimator, probe)[:, position]]
    unknown = known[len(values) :]
    if any(code != unknown[0] for code in unknown):
        raise InvalidModel(
            f"tabpfn gives unknown values of column {frame.columns[position]!r} several codes: {unknown}"
        )
    if not is_number:
        _warn_of_unmet(str(frame.columns[position]), values)
    return Coding(codes=dict(zip(values, known, strict=False)), unknown=unknown[0], missing=missing)


def _unseen_numbers(values: Sequence[float]) -> list[float]:
    """Numbers that are not among the values: the neighbours of both ends. From 2^53 the next one is not `+ 1`."""
    ends = np.nextafter([max(values, default=0.0), min(values, default=0.0)], [np.inf, -np.inf])
    return [float(number) for number in ends if np.isfinite(number)] or [0.0]


def _unseen_texts(values: Iterable[object]) -> list[str]:
    """A text that is longer than each of the values."""
    longest = max((str(value) for value in values), key=len, default="")
    return [f"{longest} and more"]


def _warn_of_unmet(column: str, values: Iterable[object]) -> None:
    unmet = unmet_texts(value for value in values if isinstance(value, str))
    if unmet:
        named = ", ".join(map(repr, unmet[:_MAX_NAMED])) + (" and others" if len(unmet) > _MAX_NAMED else "")
        _log.warning(
            "column %r: its categories %s look like numbers or flags, but no JSON number or flag meets them; "
            "send them as strings",
            column, named,
        )  # fmt: skip


def _with_placeholder(coding: Coding, estimator: Estimator, frame: pd.DataFrame, position: int) -> Coding:
    """The coding with tabpfn's placeholder for missing cells, where a cell that spells it counts as missing.

    It does in a column of text, also where no cell of the context was missing. A column of categories may have one of
    this name.
    """
    if frame.dtypes.iloc[position] == np.float64 or NA_PLACEHOLDER in (coding.codes or ()):
        return coding
    probe = frame[:1].copy()
    probe.isetitem(position, pd.Series([NA_PLACEHOLDER], index=probe.index, dtype="object"))
    code = float(clean(estimator, probe)[0, position])
    return coding if code == coding.unknown else replace(coding, codes={**(coding.codes or {}), NA_PLACEHOLDER: code})
