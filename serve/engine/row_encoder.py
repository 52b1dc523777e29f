"""Encodes one request as a float64 matrix, by the columns of the model's context.

TabPFN infers types over the whole batch that it is given, so the string of one caller can change or break the row of
another. Here every request is encoded alone, column by column, into exactly the numbers of tabpfn's own cleaning
step. `context_fit.py` compares the two on the whole context when a model is loaded. Only such matrices are joined.

What a cell may be, by its column's kind, and what it becomes:

| kind     | accepted                                        | becomes                                               |
|----------|-------------------------------------------------|-------------------------------------------------------|
| number   | number, true/false, null                        | itself, 1/0, missing                                  |
| category | string, number, true/false, null                | its code; a category that the context lacks is        |
|          |                                                 | "unknown", as in TabPFN, and never an error           |
| text     | as category                                     | as category                                           |
| datetime | ISO 8601 string (no zone means UTC), null       | days since 1970, hour, weekday, month                 |

Everything else is refused with row and column: another type, infinities, numbers beyond float32 (the network would
see an infinity), a column that the model does not have, a column that the record lacks (missing is said with null).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import numpy as np

from serve.core import ABSENT, Cells, Column, ColumnKind, Matrix, QueryTable
from serve.core.errors import InvalidInput
from serve.core.table import json_kind

MAX_MAGNITUDE = float(np.finfo(np.float32).max)
DATETIME_PARTS = ("days", "hour", "weekday", "month")

RawCell = float | str | None
"""A cell as tabpfn sees it in a fit: a number (NaN for missing) or a category's name (None for missing)."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a raw cell becomes the number in the matrix.

    Attributes:
        codes: the number of each known value; None passes numbers through.
        missing: the number of a missing cell.
        unknown: the number of a value that `codes` lacks.
        constant: the number of every cell, for a column that held a single value in the context; else None.
    """

    codes: Mapping[RawCell, float] | None = None
    missing: float = math.nan
    unknown: float = -1.0
    constant: float | None = None

    @property
    def is_identity(self) -> bool:
        """Numbers pass through unchanged."""
        return self.codes is None and self.constant is None

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
        self._readers = [_READERS[column.kind] for column in columns]
        if codings is not None and len(codings) != len(feature_names(columns)):
            raise AssertionError("this is a bug: one coding per matrix column")
        # Most columns hold numbers that pass through; only the others are coded.
        self._coded = [(i, coding) for i, coding in enumerate(self.codings or ()) if not coding.is_identity]

    def encode(self, table: QueryTable) -> Matrix:
        """Float64 [rows, matrix columns]; the columns of the table may come in any order. Raises InvalidInput."""
        return self.encode_raw(self.read(table))

    def read(self, table: QueryTable) -> list[list[RawCell]]:
        """Raw cells, one list per matrix column.

        Raises:
            InvalidInput: names the first row with a fault, and its column.
        """
        raw: list[list[RawCell]] = []
        try:
            for read, cells in zip(self._readers, self._in_order(table), strict=True):
                raw += read(cells)
        except _Refused:
            self._raise_first_fault(table)
        return raw

    def encode_raw(self, raw: Sequence[Sequence[RawCell]]) -> Matrix:
        """Float64 [rows, matrix columns] of the cells that `read` returned."""
        assert self.codings is not None, "this is a bug: encoding before the codings are known"
        encoded = list(raw)
        for position, coding in self._coded:
            encoded[position] = coding.encode(encoded[position])
        if len(encoded[0]) == 1:  # one row: without a transposed copy
            return np.array([[cell for (cell,) in encoded]], dtype=np.float64)
        return np.ascontiguousarray(np.array(encoded, dtype=np.float64).T)

    def _in_order(self, table: QueryTable) -> Sequence[Cells]:
        """The table's columns in the order of the context's. Raises _Refused where the names differ."""
        if table.names == self._names:
            return table.columns
        by_name = dict(zip(table.names, table.columns, strict=True))
        if by_name.keys() != set(self._names):
            raise _Refused("the names differ")
        return [by_name[name] for name in self._names]

    def _raise_first_fault(self, table: QueryTable) -> NoReturn:
        """Raises InvalidInput for the first row that cannot be read; within a row, names come before cells."""
        if not table.is_from_records:
            self._check_names(table.names, None)
        columns = [_python_values(cells) for cells in table.columns]
        for row in range(table.num_rows):
            record = {name: cells[row] for name, cells in zip(table.names, columns, strict=True)}
            self._check_record({name: cell for name, cell in record.items() if cell is not ABSENT}, row)
        raise AssertionError("this is a bug: a table was refused, but each of its rows can be read")

    def _check_record(self, record: Mapping[str, Any], row: int) -> None:
        self._check_names(record, row)
        for column, read in zip(self.columns, self._readers, strict=True):
            try:
                read([record[column.name]])
            except _Refused as refusal:
                raise InvalidInput(
                    f"row {row}, column {column.name!r}: {refusal}", code=refusal.code, row=row, column=column.name
                ) from None

    def _check_names(self, given: Collection[str], row: int | None) -> None:
        place = "the table" if row is None else f"row {row}"
        for name in given:
            if name not in self._names:
                raise InvalidInput(
                    f"{place} has a column {str(name)[:80]!r} that the model does not know",
                    code="unknown_column", row=row, column=str(name)[:80],
                )  # fmt: skip
        for name in self._names:
            if name not in given:
                raise InvalidInput(
                    f"{place} lacks column {name!r}; a missing value is given as null",
                    code="missing_column", row=row, column=name,
                )  # fmt: skip


class _Refused(Exception):
    def __init__(self, detail: str, code: str = "invalid_value") -> None:
        super().__init__(detail)
        self.code = code


def _python_values(cells: Cells) -> Cells:
    """Numpy and Arrow columns as lists of Python values, which every reader takes."""
    return cells if type(cells) in _PYTHON_SEQUENCES or not hasattr(cells, "tolist") else cells.tolist()


_PYTHON_SEQUENCES = (list, tuple)


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


def _read_datetimes(cells: Cells) -> list[list[RawCell]]:
    return [list(part) for part in zip(*map(_datetime_parts, _python_values(cells)), strict=True)]


def _number(cell: Any) -> float:
    if cell is None:
        return math.nan
    if not isinstance(cell, int | float):
        raise _Refused(f"{json_kind(cell)} where a number belongs", "wrong_type")
    try:
        value = float(cell)
    except OverflowError:
        value = math.inf
    if abs(value) > MAX_MAGNITUDE:
        raise _Refused("the number is infinite or beyond the range of float32", "out_of_range")
    return value


def _category(cell: Any) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        try:
            return str(cell)
        except ValueError:  # Python refuses to write integers of thousands of digits
            raise _Refused("the number is out of range", "out_of_range") from None
    if isinstance(cell, float):
        if cell != cell:
            return None
        if math.isinf(cell):
            raise _Refused("the number is infinite", "out_of_range")
        return str(int(cell)) if cell.is_integer() else repr(cell)
    raise _Refused(f"{json_kind(cell)} where a category belongs", "wrong_type")


def _datetime_parts(cell: Any) -> tuple[float, ...]:
    if cell is None:
        return (math.nan,) * len(DATETIME_PARTS)
    if not isinstance(cell, str):
        raise _Refused(f"{json_kind(cell)} where an ISO 8601 date and time belongs", "wrong_type")
    try:
        moment = datetime.fromisoformat(cell)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Refused(f"{cell[:40]!r} is not an ISO 8601 date and time", "invalid_datetime") from None
    hour = moment.hour + moment.minute / 60 + moment.second / 3_600
    return (moment.timestamp() / 86_400, hour, float(moment.weekday()), float(moment.month))


_READERS: Mapping[ColumnKind, Callable[[Cells], list[list[RawCell]]]] = {
    ColumnKind.NUMBER: _read_numbers,
    ColumnKind.CATEGORY: _read_categories,
    ColumnKind.TEXT: _read_categories,
    ColumnKind.DATETIME: _read_datetimes,
}
