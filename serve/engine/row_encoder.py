"""Encodes one request as a float64 matrix, by the columns of the model's context.

TabPFN infers types over the whole batch that it is given, so the string of one caller can change or break the row of
another. Here every request is encoded alone, column by column, into exactly the numbers of tabpfn's own cleaning
step. `context_fit.py` compares the two on the whole context when a model is loaded. Only such matrices are joined.

What a cell may be, by its column's kind, and what it becomes:

| kind     | accepted                                        | becomes                                               |
|----------|-------------------------------------------------|-------------------------------------------------------|
| number   | number, true/false, null                        | itself, 1/0, missing                                  |
| category | string, number, true/false, null                | its code; a category that the context lacks is        |
|          |                                                 | "unknown", as in TabPFN, and never an error. Numbers  |
|          |                                                 | and flags meet texts by the rule of category_texts.py |
| text     | as category                                     | as category                                           |
| datetime | string of the form in datetimes.py, null        | days since 1970, hour, weekday, month                 |

A number column that was empty in the context accepts what a category does, and each cell is missing, as in TabPFN.
Callers in Python may also give dates as such, in lists, in numpy arrays and in Arrow arrays.

Everything else is refused with row and column: another type, infinities, numbers beyond float32 (the network would
see an infinity) or beyond what the model's preprocessing can transform (`Coding.limits`), a column that the model does
not have, a column that the record lacks (missing is said with null).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from serve.core import Cells, Column, ColumnKind, Matrix, QueryTable
from serve.core.errors import InvalidInput
from serve.core.table import json_kind
from serve.engine import datetimes
from serve.engine.category_texts import number_aliases, shortest_text
from serve.engine.datetimes import DATETIME_PARTS
from serve.engine.refusals import Refused, raise_first_fault

MAX_MAGNITUDE = float(np.finfo(np.float32).max)

RawCell = float | str | None
"""A cell as tabpfn sees it in a fit: a number (NaN for missing) or a category's name (None for missing)."""

Reader: TypeAlias = Callable[[Cells], list[list[RawCell]]]
"""Reads a column's cells into one list per matrix column. Raises Refused."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a raw cell becomes the number in the matrix.

    Attributes:
        codes: the number of each known value; None passes numbers through.
        missing: the number of a missing cell.
        unknown: the number of a value that `codes` lacks.
        constant: the number of every cell, for a column that held a single value in the context; else None.
        keeps_zero_sign: -0.0 stays negative where numbers pass through; else it becomes 0.0. A fingerprint tells them
            apart.
        limits: the least and the largest number that the fitted preprocessing can transform; None: any.
    """

    codes: Mapping[RawCell, float] | None = None
    missing: float = math.nan
    unknown: float = -1.0
    constant: float | None = None
    keeps_zero_sign: bool = True
    limits: tuple[float, float] | None = None

    @property
    def is_identity(self) -> bool:
        """Numbers pass through unchanged, but for the sign of zero."""
        return self.codes is None and self.constant is None

    @property
    def is_empty(self) -> bool:
        """The column was empty in the context, so that each cell becomes missing."""
        return self.constant is not None and math.isnan(self.constant)

    def encode(self, cells: Sequence[RawCell]) -> Sequence[RawCell]:
        """The numbers of one column's cells."""
        if self.constant is not None:
            return [self.constant] * len(cells)
        if self.codes is None:
            return cells
        codes, missing, unknown = self.codes, self.missing, self.unknown
        return [missing if cell is None or cell != cell else codes.get(cell, unknown) for cell in cells]


def feature_names(columns: Sequence[Column]) -> list[str]:
    """Names of the matrix columns: the inputs in order, a datetime as its parts."""
    names = []
    for column in columns:
        if column.kind is ColumnKind.DATETIME:
            names += [f"{column.name}:{part}" for part in DATETIME_PARTS]
        else:
            names.append(column.name)
    return names


class RowEncoder:
    """Reads the cells of a table by the kinds of the columns, and codes them.

    Args:
        columns: the input columns of the context, in order.
        codings: one per matrix column (`feature_names`); without them the encoder can only `read`.
    """

    def __init__(self, columns: Sequence[Column], codings: Sequence[Coding] | None = None) -> None:
        self.columns = tuple(columns)
        self.codings = None if codings is None else tuple(codings)
        self._names = tuple(column.name for column in columns)
        if codings is not None and len(codings) != len(feature_names(columns)):
            raise AssertionError("this is a bug: one coding per matrix column")
        self._readers = _readers(columns, self.codings)
        # Most columns hold numbers that pass through; only the others are coded.
        self._coded = [(i, coding) for i, coding in enumerate(self.codings or ()) if not coding.is_identity]
        # To add 0.0 makes -0.0 positive, and to add -0.0 changes nothing.
        signless = [coding.is_identity and not coding.keeps_zero_sign for coding in self.codings or ()]
        starts = np.cumsum([0, *(_width(column) for column in columns)]).tolist()
        self._empty = [start for start, read in zip(starts, self._readers, strict=False) if read is _read_empty]
        self._zeros = np.where([signless], 0.0, -0.0) if any(signless) else None
        self._limited = [i for i, coding in enumerate(self.codings or ()) if coding.limits is not None]
        self._limits = np.array([coding.limits for coding in self.codings or () if coding.limits is not None]).T

    def limited_to(self, limits: Mapping[int, tuple[float, float]]) -> RowEncoder:
        """The same encoder with `Coding.limits` for some matrix columns, by their position."""
        codings = [replace(coding, limits=limits.get(i)) for i, coding in enumerate(self.codings or ())]
        return RowEncoder(self.columns, codings)

    def encode(self, table: QueryTable) -> Matrix:
        """Float64 [rows, matrix columns]; the columns of the table may come in any order. Raises InvalidInput."""
        matrix = self.encode_raw(self.read(table))
        if self._limited:
            self._check_limits(matrix)
        return matrix

    def read(self, table: QueryTable) -> list[list[RawCell]]:
        """Raw cells, one list per matrix column.

        Raises:
            InvalidInput: names the first row with a fault, and its column.
        """
        raw: list[list[RawCell]] = []
        try:
            for read, cells in zip(self._readers, self._in_order(table), strict=True):
                raw += read(cells)
        except Refused:
            raise_first_fault(table, [_python_values(cells) for cells in table.columns], self.columns, self._readers)
        return raw

    def encode_raw(self, raw: Sequence[Sequence[RawCell]]) -> Matrix:
        """Float64 [rows, matrix columns] of the cells that `read` returned."""
        assert self.codings is not None, "this is a bug: encoding before the codings are known"
        encoded = list(raw)
        for position, coding in self._coded:
            encoded[position] = coding.encode(encoded[position])
        if len(encoded[0]) == 1:  # one row: without a transposed copy
            matrix = np.array([[cell for (cell,) in encoded]], dtype=np.float64)
        else:
            matrix = np.ascontiguousarray(np.array(encoded, dtype=np.float64).T)
        if self._zeros is not None:
            np.add(matrix, self._zeros, matrix)
        for position in self._empty:  # a string here makes tabpfn infer the types of the whole row anew
            matrix[[isinstance(cell, str) for cell in raw[position]]] += 0.0
        return matrix

    def _check_limits(self, matrix: Matrix) -> None:
        """Raises InvalidInput for the first number that the preprocessing cannot transform."""
        numbers, (lowest, highest) = matrix[:, self._limited], self._limits
        beyond = np.argwhere((numbers < lowest) | (numbers > highest))
        if len(beyond):
            row, place = map(int, beyond[0])
            parts = [column.name for column in self.columns for _ in feature_names([column])]
            name = parts[self._limited[place]]
            raise InvalidInput(
                f"row {row}, column {name!r}: the number is beyond what the model's preprocessing can transform; "
                f"it takes {lowest[place]:.6g} to {highest[place]:.6g}",
                code="out_of_range", row=row, column=name,
            )  # fmt: skip

    def _in_order(self, table: QueryTable) -> Sequence[Cells]:
        """The table's columns in the order of the context's. Raises Refused where the names differ."""
        if table.names == self._names:
            return table.columns
        by_name = dict(zip(table.names, table.columns, strict=True))
        if by_name.keys() != set(self._names):
            raise Refused("the names differ")
        return [by_name[name] for name in self._names]


def _python_values(cells: Cells) -> Cells:
    """Numpy and Arrow columns as lists of Python values, which every reader takes."""
    if type(cells) in _PYTHON_SEQUENCES or not hasattr(cells, "tolist"):
        return cells
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M" and np.datetime_data(cells.dtype)[0] in _FINE_UNITS:
        cells = cells.astype("datetime64[us]")
    values: Cells = cells.tolist()
    return values


_PYTHON_SEQUENCES = (list, tuple)
_FINE_UNITS = ("ns", "ps", "fs", "as")
"""Units of time that numpy lists as integers."""


def _read_numbers(cells: Cells) -> list[list[RawCell]]:
    # Most cells are floats in range: those need no call.
    return [
        [
            cell if type(cell) is float and -MAX_MAGNITUDE <= cell <= MAX_MAGNITUDE else _number(cell)
            for cell in _python_values(cells)
        ]
    ]


def _read_categories(cells: Cells) -> list[list[RawCell]]:
    return [[cell if type(cell) is str else _category(cell) for cell in _python_values(cells)]]


def _read_by_alias(aliases: Mapping[str, str], cells: Cells) -> list[list[RawCell]]:
    """As `_read_categories`, for a column whose context holds numbers or flags as other texts than the shortest."""
    names: list[RawCell] = []
    for cell in _python_values(cells):
        name = _category(cell)
        names.append(name if name is None or isinstance(cell, str) else aliases.get(name, name))
    return [names]


def _read_empty(cells: Cells) -> list[list[RawCell]]:
    """Cells of a column that was empty in the context: strings stay, for `encode_raw`, and all else is missing.

    Refused is what no kind of column takes.
    """
    names = zip(_python_values(cells), map(_category, _python_values(cells)), strict=True)
    return [[name if isinstance(cell, str) else math.nan for cell, name in names]]


def _read_datetimes(cells: Cells) -> list[list[RawCell]]:
    return [list(part) for part in zip(*map(_datetime_parts, _python_values(cells)), strict=True)]


def _number(cell: Any) -> float:
    if cell is None:
        return math.nan
    if not isinstance(cell, int | float):
        raise Refused(f"{json_kind(cell)} where a number belongs", "wrong_type")
    try:
        value = float(cell)
    except OverflowError:
        value = math.inf
    if abs(value) > MAX_MAGNITUDE:
        raise Refused("the number is infinite or beyond the range of float32", "out_of_range")
    return value if value == value else math.nan  # of NaN's many bit patterns the one that tabpfn makes


def _category(cell: Any) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    if not isinstance(cell, int | float):
        raise Refused(f"{json_kind(cell)} where a category belongs", "wrong_type")
    if cell != cell:
        return None
    try:
        return shortest_text(cell)
    except ValueError:  # infinite, or an integer of thousands of digits
        raise Refused("the number is infinite or out of range", "out_of_range") from None


def _datetime_parts(cell: Any) -> tuple[float, ...]:
    if type(cell) is not str:
        if cell is None or (isinstance(cell, float | date) and cell != cell):  # NaN, or pandas' NaT
            return (math.nan,) * len(DATETIME_PARTS)
        if not isinstance(cell, str | date):
            raise Refused(f"{json_kind(cell)} where a date and time belongs", "wrong_type")
    try:
        return datetimes.parts(datetimes.parse(cell) if isinstance(cell, str) else datetimes.in_utc(cell))
    except (ValueError, OverflowError):
        raise Refused(
            f"{str(cell)[:40]!r} is not a date and time such as {datetimes.EXAMPLE}", "invalid_datetime"
        ) from None


def _readers(columns: Sequence[Column], codings: Sequence[Coding] | None) -> list[Reader]:
    """One reader per column, by its kind and by what its context held."""
    readers: list[Reader] = []
    position = 0
    for column in columns:
        read = _READERS[column.kind]
        if codings is not None:
            coding = codings[position]
            if column.kind is ColumnKind.NUMBER and coding.is_empty:
                read = _read_empty
            elif read is _read_categories and coding.codes:
                names = [name for name in coding.codes if isinstance(name, str)]
                aliases = number_aliases(names)
                read = partial(_read_by_alias, aliases) if aliases else read
        readers.append(read)
        position += _width(column)
    return readers


def _width(column: Column) -> int:
    return len(DATETIME_PARTS) if column.kind is ColumnKind.DATETIME else 1


_READERS: Mapping[ColumnKind, Reader] = {
    ColumnKind.NUMBER: _read_numbers,
    ColumnKind.CATEGORY: _read_categories,
    ColumnKind.TEXT: _read_categories,
    ColumnKind.DATETIME: _read_datetimes,
}
