"""Finds the cell at fault in a table that cannot be read. Only refused requests come here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from serve.core import ABSENT, Cells, Column, QueryTable
from serve.core.errors import InvalidInput

Reader: TypeAlias = Callable[[Cells], object]
"""Reads a column's cells. Raises Refused."""


class Refused(Exception):
    """A cell cannot be read; the reader does not know its row and column."""

    def __init__(self, detail: str, code: str = "invalid_value") -> None:
        super().__init__(detail)
        self.code = code


def raise_first_fault(
    table: QueryTable, values: Sequence[Cells], columns: Sequence[Column], readers: Sequence[Reader]
) -> NoReturn:
    """Raise InvalidInput for the first row that cannot be read; within a row, names come before cells.

    Args:
        values: the table's columns as Python values.
        columns, readers: the columns of the model, and the reader of each.
    """
    if not table.is_from_records:
        _check_names(table.names, columns, None)
    for row in range(table.num_rows):
        record = {name: cells[row] for name, cells in zip(table.names, values, strict=True)}
        given = {name: cell for name, cell in record.items() if cell is not ABSENT}
        _check_names(given, columns, row)
        _check_cells(given, columns, readers, row)
    raise AssertionError("this is a bug: a table was refused, but each of its rows can be read")


def _check_cells(record: Mapping[str, Any], columns: Sequence[Column], readers: Sequence[Reader], row: int) -> None:
    for column, read in zip(columns, readers, strict=True):
        try:
            read([record[column.name]])
        except Refused as refusal:
            raise InvalidInput(
                f"row {row}, column {column.name!r}: {refusal}", code=refusal.code, row=row, column=column.name
            ) from None


def _check_names(given: Collection[str], columns: Sequence[Column], row: int | None) -> None:
    place = "the table" if row is None else f"row {row}"
    known = [column.name for column in columns]
    for name in given:
        if name not in known:
            raise InvalidInput(
                f"{place} has a column {str(name)[:80]!r} that the model does not know",
                code="unknown_column", row=row, column=str(name)[:80],
            )  # fmt: skip
    for name in known:
        if name not in given:
            raise InvalidInput(
                f"{place} lacks column {name!r}; a missing value is given as null",
                code="missing_column", row=row, column=name,
            )  # fmt: skip
