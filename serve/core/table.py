"""Query rows as named columns: the one form that every request body is read into.

The checks of shape stand here and nowhere else: at least one row, no column named twice, no row of another length.
What a cell may hold is decided later, by the columns of the model (`engine/row_encoder.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from serve.core.errors import InvalidInput

_MAX_NAME_CHARS = 100


class Absent(enum.Enum):
    """The type of `ABSENT`."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
"""The cell of a record that does not name the column. A missing value is None instead."""

Cells = Sequence[Any]
"""One column: Python values, a numpy array, or an Arrow array; as long as the table has rows."""


@dataclass(frozen=True, slots=True)
class QueryTable:
    """Query rows before the model's columns are applied to them. Made by one of the class methods.

    Attributes:
        names: distinct column names, in the order of the request.
        columns: one sequence of cells per name, each `num_rows` long.
        num_rows: 1 or more.
        is_from_records: each row named its own cells, so that a wrong name is the fault of one row.
    """

    names: tuple[str, ...]
    columns: tuple[Cells, ...]
    num_rows: int
    is_from_records: bool = False

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> Self:
        """One mapping of column name to cell per row.

        Raises:
            InvalidInput: there is no record, or a row is no mapping.
        """
        if not records:
            raise _no_rows()
        first = records[0]
        if len(records) == 1 and type(first) is dict:  # the request of a real-time caller
            return cls(tuple(first), tuple(zip(first.values(), strict=True)), 1, is_from_records=True)
        names = tuple(first) if isinstance(first, Mapping) else ()
        num_names = len(names)
        if all(type(record) is dict and len(record) == num_names for record in records):
            try:
                columns = tuple([record[name] for record in records] for name in names)
                return cls(names, columns, len(records), is_from_records=True)
            except KeyError:
                pass
        return cls._from_any_records(records)

    @classmethod
    def _from_any_records(cls, records: Sequence[Any]) -> Self:
        """Records that name different columns: `ABSENT` stands where a record does not name one."""
        names: dict[str, None] = {}
        for row, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise InvalidInput(f"row {row} is {json_kind(record)}, not an object", code="invalid_record", row=row)
            names.update(dict.fromkeys(record))
        columns = tuple([record.get(name, ABSENT) for record in records] for name in names)
        return cls(tuple(names), columns, len(records), is_from_records=True)

    @classmethod
    def from_rows(cls, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Self:
        """Column names, and one sequence of cells per row in their order.

        Raises:
            InvalidInput: there is no row, a name is given twice, or a row has another number of cells.
        """
        if not rows:
            raise _no_rows()
        _check_distinct(names)
        for row, cells in enumerate(rows):
            if isinstance(cells, str) or not isinstance(cells, Sequence):
                raise InvalidInput(f"row {row} is {json_kind(cells)}, not an array", code="invalid_record", row=row)
            if len(cells) != len(names):
                detail = f"row {row} has {len(cells)} cells for {len(names)} columns"
                raise InvalidInput(detail, code="ragged_row", row=row)
        return cls(tuple(names), tuple(zip(*rows, strict=True)), len(rows))

    @classmethod
    def from_columns(cls, columns: Mapping[str, Cells]) -> Self:
        """Column name to cells, as dataframes and Arrow tables hold them.

        Raises:
            InvalidInput: there is no row, or the columns are of unequal lengths.
        """
        lengths = {name: len(cells) for name, cells in columns.items()}
        num_rows = max(lengths.values(), default=0)
        if not num_rows:
            raise _no_rows()
        for name, length in lengths.items():
            if length != num_rows:
                detail = f"column {name[:_MAX_NAME_CHARS]!r} has {length} cells, another column has {num_rows}"
                raise InvalidInput(detail, code="ragged_row", row=length, column=name)
        return cls(tuple(columns), tuple(columns.values()), num_rows)


def json_kind(value: Any) -> str:
    """The kind of a JSON value, for error messages."""
    if value is None:
        return "null"
    names = {bool: "true or false", str: "a string", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), "an object")


def _check_distinct(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            detail = f"column {name[:_MAX_NAME_CHARS]!r} is named twice"
            raise InvalidInput(detail, code="duplicate_column", column=name)
        seen.add(name)


def _no_rows() -> InvalidInput:
    return InvalidInput("there are no rows to predict", code="no_rows")
