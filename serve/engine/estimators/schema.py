"""The input schema of a fitted estimator: its columns, their codings, and plausible values for each.

The context that the estimator was fitted on is gone or out of reach. So everything is read from what the fit left
behind: the categories of its encoder, and the numbers between which its preprocessing distinguishes. None of the values
is a row of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from serve.core import Column, ColumnKind, Matrix, QueryTable, Scalar
from serve.core.errors import InvalidModel
from serve.engine import cleaning
from serve.engine.row_encoder import Coding, RawCell, RowEncoder
from serve.engine.tabpfn_estimators import Estimator

_NUM_ROWS = 16
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of a column's total movement at which example numbers are taken; see `_numbers`."""
_STEPS = np.array([float(f"{digit}e{power}") for power in range(-4, 8) for digit in (1, 1.5, 2, 3, 5, 7)])
_CANDIDATES = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])
_PASSED_THROUGH = 1e4
"""Prepared values beyond this were not scaled, so they do not show where the context's numbers lay."""


@dataclasses.dataclass(frozen=True, slots=True)
class EstimatorSchema:
    """The columns of an estimator. No column is a date; see `read_schema`.

    Attributes:
        columns: in order.
        codings: one per column.
        values: plausible raw cells of each column.
    """

    columns: tuple[Column, ...]
    codings: tuple[Coding, ...]
    values: tuple[tuple[RawCell, ...], ...]

    @property
    def encoder(self) -> RowEncoder:
        """Encodes the rows of requests."""
        return RowEncoder(self.columns, self.codings)

    def example(self) -> dict[str, Scalar]:
        """A valid record, of the middle value of each column."""
        record: dict[str, Scalar] = {}
        for column, values in zip(self.columns, self.values, strict=True):
            cell = values[len(values) // 2]
            is_whole = isinstance(cell, float) and cell.is_integer()
            record[column.name] = None if cell != cell else int(cell) if is_whole else cell  # type: ignore[arg-type]
        return record

    def rows(self) -> Matrix:
        """16 encoded rows, drawn from the values with a fixed seed: float64 [16, columns]."""
        rng = np.random.default_rng(0)
        raw = [[values[rng.integers(len(values))] for values in self.values] for _ in range(_NUM_ROWS)]
        return self.encoder.encode_raw(list(zip(*raw, strict=True)))

    def cells(self) -> Mapping[str, Sequence[Scalar]]:
        """The categories of each column, with None for missing, from which memory is predicted (`memory/sizes.py`)."""
        known = [[*(coding.codes or ()), None] for coding in self.codings]
        return {column.name: cells for column, cells in zip(self.columns, known, strict=True)}


def read_schema(estimator: Estimator) -> EstimatorSchema:
    """Read the schema of a fitted estimator.

    Raises:
        InvalidModel: a request's cells of some column cannot be read as the fit read them.
    """
    names = _names(estimator)
    known = _known_values(estimator)
    frame = _probe_frame(names, known, num_columns=len(names))
    codings = cleaning.learn_codings(estimator, frame)
    constants = getattr(estimator.ordinal_encoder_, "constant_values_", None) or {}
    columns, values = [], []
    for position, name in enumerate(names):
        if position in known and position not in constants:
            _check_codes(name, known[position], codings[position])
        cells = known.get(position) or _numbers(estimator, position, len(names))
        if position in constants:
            cells = [_raw(constants[position])]
        is_number = all(isinstance(cell, float) for cell in cells)
        columns.append(Column(name, ColumnKind.NUMBER if is_number else ColumnKind.CATEGORY))
        if not is_number and codings[position].codes is not None:
            codings[position] = _by_name(codings[position], name)
            cells = list(codings[position].codes or cells)
        values.append(tuple(cells))
    return EstimatorSchema(tuple(columns), tuple(codings), tuple(values))


def _names(estimator: Estimator) -> list[str]:
    expanding = (estimator.date_transformer_, estimator.text_transformer_)
    if any(transformer.expanded_indices for transformer in expanding):
        raise InvalidModel("it expands dates or free text into columns of its own, which is not supported")
    num_columns = estimator.inferred_feature_schema_.num_columns
    given = getattr(estimator, "feature_names_in_", None)
    names = [f"f{i}" for i in range(num_columns)] if given is None else [str(name) for name in given]
    if len(set(names)) < len(names) or "" in names:
        raise InvalidModel("two of its columns have the same name, or one has none")
    return names


def _known_values(estimator: Estimator) -> dict[int, list[Any]]:
    """The categories of every encoded column, in the types of the fit; floats where all of them are numbers.

    A column of numbers that the fit took for categories (flags, codes) is read as numbers. So 1, 1.0 and true are
    equal, as they were in the fit.
    """
    encoder = estimator.ordinal_encoder_
    encoded = encoder.selected_columns()
    if not encoded:
        return {}
    labels = list(getattr(encoder, "feature_names_in_", range(encoder.n_features_in_)))
    known = {}
    for column, categories in zip(encoded, encoder.named_transformers_["encoder"].categories_, strict=True):
        position = labels.index(column) if column in labels else int(column)
        cells = [cell for cell in categories if not pd.isna(cell)]
        is_number = all(isinstance(cell, bool | int | float | np.number | np.bool_) for cell in cells)
        known[position] = [float(cell) for cell in cells] if is_number else cells
    return known


def _probe_frame(names: Sequence[str], known: Mapping[int, list[Any]], num_columns: int) -> pd.DataFrame:
    """A frame that holds every category of every column at least once, and numbers in the other columns."""
    num_rows = max([len(cells) for cells in known.values()], default=1)
    columns = {}
    for position in range(num_columns):
        cells = known.get(position) or [0.0]
        is_number = all(isinstance(cell, float) for cell in cells)
        filled = [cells[row % len(cells)] for row in range(max(1, num_rows))]
        columns[names[position]] = pd.Series(filled, dtype="float64" if is_number else "object")
    return pd.DataFrame(columns)


def _check_codes(column: str, categories: Sequence[Any], coding: Coding) -> None:
    """Raises InvalidModel unless cleaning turns every category into the encoder's code for it."""
    expected = {category: float(code) for code, category in enumerate(categories)}
    if categories and coding.codes != expected:
        raise InvalidModel(f"the categories of column {column!r} are not encoded as they were when it was fitted")


def _by_name(coding: Coding, column: str) -> Coding:
    """The coding with categories named as the row encoder reads them from a request."""
    reader = RowEncoder([Column(column, ColumnKind.CATEGORY)])
    codes: dict[RawCell, float] = {}
    for cell, code in (coding.codes or {}).items():
        value: Any = cell.item() if isinstance(cell, np.generic) else cell
        if not isinstance(value, str | bool | int | float):
            raise InvalidModel(f"column {column!r} has a category {value!r}; only strings and numbers are supported")
        ((name,),) = reader.read(QueryTable.from_columns({column: [value]}))
        if name in codes:
            raise InvalidModel(f"column {column!r} has two categories that a request would both write as {name!r}")
        codes[name] = code
    return dataclasses.replace(coding, codes=codes)


def _raw(value: Any) -> RawCell:
    if pd.isna(value):
        return math.nan
    return float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else str(value)


def _numbers(estimator: Estimator, position: int, num_columns: int) -> list[RawCell]:
    """Plausible numbers of a column, between which the fitted preprocessing distinguishes.

    An estimator that kept its cleaned rows gives their quantiles. Otherwise a series of candidate numbers passes
    through the members' pipelines, and those are taken at which the prepared values move.
    """
    kept = getattr(estimator.executor_, "X_train", None)
    if kept is not None:
        column = np.asarray(kept[:, position], dtype=np.float64)
        column = column[np.isfinite(column)]
        return [float(f"{value:.3g}") for value in np.quantile(column, _SHARES)] if len(column) else [0.0]
    rows = np.full((len(_CANDIDATES), num_columns), math.nan)
    rows[:, position] = _CANDIDATES
    # members of one recipe give the same result
    members = {member.config.preprocess_config.name: member for member in estimator.executor_.ensemble_members}
    moved = np.zeros(len(_CANDIDATES) - 1)
    for member in members.values():
        moved += _movement(np.asarray(member.transform_X_test(rows), dtype=np.float64))
    if not moved.any():
        return [0.0, 1.0]
    shares = np.cumsum(moved) / moved.sum()
    return [float(_CANDIDATES[1 + np.searchsorted(shares, share)]) for share in _SHARES]


def _movement(prepared: Matrix) -> Matrix:
    """How far each step between candidates moves the prepared columns: float64 [candidates - 1].

    Columns that move back and forth (fingerprints) or were not scaled do not count.
    """
    finite = np.nan_to_num(prepared, nan=0.0, posinf=0.0, neginf=0.0)
    steps = np.diff(np.arctan(finite), axis=0)
    net, total = np.abs(steps.sum(axis=0)), np.abs(steps).sum(axis=0)
    counts = (net > 0.9 * total) & (np.abs(finite).max(axis=0) < _PASSED_THROUGH)
    return np.asarray(np.abs(steps[:, counts]).sum(axis=1), dtype=np.float64)
