"""One request -> float64 matrix, alone, by the schema of the context.

TabPFN infers types over the whole batch that it is given, so one caller's string can change or break another's row.
Here every request is read by itself, column by column, into exactly the numbers that the library's own cleaning step
would have made of it (`engine.py` compares the two on the whole context at load); only such matrices are ever joined.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from serve.core import Column, ColumnKind, Matrix
from serve.core.errors import InvalidInput

MAX_MAGNITUDE = float(np.finfo(np.float32).max)
DATETIME_PARTS = ("days", "hour", "weekday", "month")

RawCell = float | str | None
"""A cell as the library is shown it at fit: a number (NaN for missing) or a category's name (None for missing)."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a raw cell becomes the number in the matrix.

    Attributes:
        codes: numbers of the known values; None passes numbers through.
        missing: number of a missing cell.
        unknown: number of a value that `codes` lacks.
        constant: the column held one value in the context, so it tells nothing; always this number.
    """

    codes: Mapping[RawCell, float] | None = None
    missing: float = math.nan
    unknown: float = -1.0
    constant: float | None = None

    def encode(self, cell: RawCell) -> float:
        if self.constant is not None:
            return self.constant
        if cell is None or cell != cell:
            return self.missing
        if self.codes is None:
            return cell  # type: ignore[return-value]  # only number columns have no codes
        return self.codes.get(cell, self.unknown)


def feature_names(columns: Sequence[Column]) -> list[str]:
    """Names of the matrix's columns: the inputs, a datetime as its parts."""
    names = []
    for column in columns:
        if column.kind is ColumnKind.DATETIME:
            names += [f"{column.name}:{part}" for part in DATETIME_PARTS]
        else:
            names.append(column.name)
    return names


class RowEncoder:
    """Reads cells by the columns' kinds and codes them; one `Coding` per matrix column (`feature_names`)."""

    def __init__(self, columns: Sequence[Column], codings: Sequence[Coding] | None = None) -> None:
        self.columns = tuple(columns)
        self._names = {column.name: position for position, column in enumerate(columns)}
        self._readers = [_READERS[column.kind] for column in columns]
        self._codings = None if codings is None else tuple(codings)
        if codings is not None and len(codings) != len(feature_names(columns)):
            raise AssertionError("this is a bug: one coding per matrix column")

    def read_records(self, records: Sequence[Mapping[str, Any]]) -> list[list[RawCell]]:
        """Raw cells, one list per record. Raises InvalidInput."""
        return [self._read_record(row, record) for row, record in enumerate(records)]

    def encode_records(self, records: Sequence[Mapping[str, Any]]) -> Matrix:
        """Float64 [records, matrix columns]. Raises InvalidInput."""
        return self.encode_raw(self.read_records(records))

    def encode_table(self, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> Matrix:
        """Float64 [rows, matrix columns]; the columns may come in any order. Raises InvalidInput."""
        self._check_names(columns, row=None)
        if len(columns) != len(set(columns)):
            twice = next(name for name in columns if list(columns).count(name) > 1)
            raise InvalidInput(f"column {twice!r} is given twice", code="duplicate_column", column=twice)
        return self.encode_records([self._as_record(row, columns, cells) for row, cells in enumerate(data)])

    def encode_raw(self, raw: Sequence[Sequence[RawCell]]) -> Matrix:
        """Float64 [rows, matrix columns] of cells that were read before."""
        assert self._codings is not None, "this is a bug: encoding before the codings are known"
        encoded = [[coding.encode(cell) for coding, cell in zip(self._codings, row, strict=True)] for row in raw]
        return np.array(encoded, dtype=np.float64).reshape(len(raw), len(self._codings))

    def _read_record(self, row: int, record: Mapping[str, Any]) -> list[RawCell]:
        if not isinstance(record, Mapping):
            raise InvalidInput(f"row {row} is {_named(record)}, not an object", code="invalid_record", row=row)
        if len(record) != len(self._names) or not all(map(self._names.__contains__, record)):
            self._check_names(record, row)
        raw: list[RawCell] = []
        for column, read in zip(self.columns, self._readers, strict=True):
            try:
                raw += read(record[column.name])
            except _Refused as refusal:
                raise InvalidInput(
                    f"row {row}, column {column.name!r}: {refusal}", code=refusal.code, row=row, column=column.name
                ) from None
        return raw

    def _check_names(self, given: Sequence[str] | Mapping[str, Any], row: int | None) -> None:
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

    def _as_record(self, row: int, columns: Sequence[str], cells: Sequence[Any]) -> dict[str, Any]:
        if isinstance(cells, str) or not isinstance(cells, Sequence):
            raise InvalidInput(f"row {row} is {_named(cells)}, not an array", code="invalid_record", row=row)
        if len(cells) != len(columns):
            raise InvalidInput(
                f"row {row} has {len(cells)} cells for {len(columns)} columns", code="ragged_row", row=row
            )
        return dict(zip(columns, cells, strict=True))


class _Refused(Exception):
    def __init__(self, detail: str, code: str = "invalid_value") -> None:
        super().__init__(detail)
        self.code = code


def _read_number(cell: Any) -> tuple[RawCell, ...]:
    if cell is None:
        return (math.nan,)
    if not isinstance(cell, int | float):
        raise _Refused(f"{_named(cell)} where a number belongs", "wrong_type")
    try:
        value = float(cell)
    except OverflowError:
        value = math.inf
    if value != value:
        return (math.nan,)
    if abs(value) > MAX_MAGNITUDE:
        raise _Refused("the number is infinite or beyond the range of float32", "out_of_range")
    return (value,)


def _read_category(cell: Any) -> tuple[RawCell, ...]:
    if cell is None or isinstance(cell, str):
        return (cell,)
    if isinstance(cell, bool):
        return ("true" if cell else "false",)
    if isinstance(cell, int):
        try:
            return (str(cell),)
        except ValueError:  # Python refuses to write integers of thousands of digits
            raise _Refused("the number is out of range", "out_of_range") from None
    if isinstance(cell, float):
        if cell != cell:
            return (None,)
        if math.isinf(cell):
            raise _Refused("the number is infinite", "out_of_range")
        return (str(int(cell)) if cell.is_integer() else repr(cell),)
    raise _Refused(f"{_named(cell)} where a category belongs", "wrong_type")


def _read_datetime(cell: Any) -> tuple[RawCell, ...]:
    if cell is None:
        return (math.nan,) * len(DATETIME_PARTS)
    if not isinstance(cell, str):
        raise _Refused(f"{_named(cell)} where an ISO 8601 date and time belongs", "wrong_type")
    try:
        moment = datetime.fromisoformat(cell)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Refused(f"{cell[:40]!r} is not an ISO 8601 date and time", "invalid_datetime") from None
    hour = moment.hour + moment.minute / 60 + moment.second / 3_600
    return (moment.timestamp() / 86_400, hour, float(moment.weekday()), float(moment.month))


_READERS: dict[ColumnKind, Callable[[Any], tuple[RawCell, ...]]] = {
    ColumnKind.NUMBER: _read_number,
    ColumnKind.CATEGORY: _read_category,
    ColumnKind.TEXT: _read_category,
    ColumnKind.DATETIME: _read_datetime,
}


def _named(cell: Any) -> str:
    """A JSON value's kind, for people."""
    if cell is None:
        return "null"
    names = {bool: "true or false", str: "a string", int: "a number", float: "a number", list: "an array"}
    return names.get(type(cell), "an object")
