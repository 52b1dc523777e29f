"""The input schema of a fitted estimator: its columns, their codings, and plausible values for each.

The context that the estimator was fitted on is gone or out of reach. So everything is read from what the fit left
behind: the categories of its encoder, and the numbers between which its preprocessing distinguishes. None of the values
is a row of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tabpfn.constants import NA_PLACEHOLDER

from serve.core import Column, ColumnKind, Matrix, QueryTable, Scalar
from serve.core.errors import InvalidModel
from serve.engine import cleaning
from serve.engine.coding import Coding, RawCell
from serve.engine.estimators.plausible import only_taken, plausible_numbers
from serve.engine.row_encoder import RowEncoder
from serve.engine.tabpfn_estimators import Estimator

_NUM_ROWS = 16
_NUM_PROBES = 5
"""Values of a column that `EstimatorSchema.probes` asks for."""


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
            is_whole = isinstance(cell, float) and abs(cell) < 2**53 and cell.is_integer()
            record[column.name] = None if cell != cell else int(cell) if is_whole else cell  # type: ignore[arg-type]
        return record

    def rows(self) -> Matrix:
        """16 encoded rows, drawn from the values with a fixed seed: float64 [16, columns]."""
        rng = np.random.default_rng(0)
        raw = [[values[rng.integers(len(values))] for values in self.values] for _ in range(_NUM_ROWS)]
        return self.encoder.encode_raw(list(zip(*raw, strict=True)))

    def probes(self) -> tuple[Matrix, Matrix, NDArray[np.intp]]:
        """Rows that differ in one column each, among them with missing, unknown and new cells.

        Returns:
            A base row [columns], the probes [probes, columns], and the column that is other in each, [probes].
        """
        coded = [
            np.array(coding.encode(values), dtype=np.float64)
            for coding, values in zip(self.codings, self.values, strict=True)
        ]
        base = np.array([cells[len(cells) // 2] for cells in coded])
        probes, columns = [], []
        for position, (coding, cells) in enumerate(zip(self.codings, coded, strict=True)):
            new = _new_numbers(cells) if coding.is_identity else [coding.unknown]
            others = [*cells[:_NUM_PROBES], coding.missing, *new]
            for cell in others if coding.constant is None else []:
                probe = base.copy()
                probe[position] = cell
                probes.append(probe)
                columns.append(position)
        return base, np.array(probes).reshape(-1, len(base)), np.array(columns, dtype=np.intp)

    def cells(self) -> Mapping[str, Sequence[Scalar]]:
        """The categories of each column, with None for missing, from which memory is predicted (`memory/sizes.py`)."""
        known = [[*_categories(coding), None] for coding in self.codings]
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
        cells = list(known.get(position) or plausible_numbers(estimator, position, len(names)))
        if position in constants:
            cells = [_raw(constants[position])]
        is_number = all(isinstance(cell, float) for cell in cells)
        columns.append(Column(name, ColumnKind.NUMBER if is_number else ColumnKind.CATEGORY))
        if not is_number and codings[position].codes is not None:
            codings[position] = _by_name(codings[position], name)
            cells = _categories(codings[position]) or [None]
        values.append(cells)
    return EstimatorSchema(tuple(columns), tuple(codings), _only_taken(estimator, codings, values))


def _only_taken(
    estimator: Estimator, codings: Sequence[Coding], values: Sequence[Sequence[RawCell]]
) -> tuple[tuple[RawCell, ...], ...]:
    """The values without numbers that the fitted preprocessing refuses."""
    encoded: Any = [coding.encode(cells) for coding, cells in zip(codings, values, strict=True)]
    numbers = only_taken(estimator, encoded)
    return tuple(
        tuple(taken if coding.is_identity else cells)
        for coding, cells, taken in zip(codings, values, numbers, strict=True)
    )


def _new_numbers(cells: Matrix) -> list[float]:
    """Numbers beyond a column's; a column of one value has no others."""
    low, high = np.nanmin(cells, initial=0.0), np.nanmax(cells, initial=0.0)
    return [low - 1.0, high + 1.0 + high - low]


def _categories(coding: Coding) -> list[RawCell]:
    """The values that have a code of their own; tabpfn's placeholder for missing text has none."""
    return [cell for cell, code in (coding.codes or {}).items() if code == code]


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


def _known_values(estimator: Estimator) -> dict[int, dict[Any, float]]:
    """Codes of the categories of every encoded column, in the types of the fit; floats where all are numbers.

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
        codes = {cell: float(code) for code, cell in enumerate(categories) if not pd.isna(cell)}
        is_number = all(isinstance(cell, bool | int | float | np.number | np.bool_) for cell in codes)
        known[position] = {float(cell): code for cell, code in codes.items()} if is_number else codes
    return known


def _probe_frame(names: Sequence[str], known: Mapping[int, Collection[Any]], num_columns: int) -> pd.DataFrame:
    """A frame that holds every category of every column at least once, and numbers in the other columns."""
    num_rows = max([len(cells) for cells in known.values()], default=1)
    columns = {}
    for position in range(num_columns):
        cells = list(known.get(position) or [0.0])
        is_number = all(isinstance(cell, float) for cell in cells)
        filled = [cells[row % len(cells)] for row in range(max(1, num_rows))]
        columns[names[position]] = pd.Series(filled, dtype="float64" if is_number else "object")
    return pd.DataFrame(columns)


def _check_codes(column: str, expected: Mapping[Any, float], coding: Coding) -> None:
    """Raises InvalidModel unless cleaning turns every category into the encoder's code for it.

    In a column of text, tabpfn's placeholder for missing cells is among the encoder's categories, and means missing.
    """
    found = coding.codes or {}
    differs = [
        cell
        for cell, code in expected.items()
        if found.get(cell) != code and not (cell == NA_PLACEHOLDER and math.isnan(found.get(cell, 0.0)))
    ]
    if differs:
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
