"""Reads the cells of one column by its kind. `row_encoder.py` says what each kind takes, and what it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from serve.core import Cells, Column, ColumnKind
from serve.core.table import json_kind
from serve.engine import datetimes
from serve.engine.category_texts import number_aliases, shortest_text
from serve.engine.coding import Coding, RawCell, width
from serve.engine.datetimes import DATETIME_PARTS
from serve.engine.refusals import Refused

MAX_MAGNITUDE = float(np.finfo(np.float32).max)

Reader: TypeAlias = Callable[[Cells], list[list[RawCell]]]
"""Reads a column's cells into one list per matrix column. Raises Refused."""


def python_values(cells: Cells) -> Cells:
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


def read_numbers(cells: Cells) -> list[list[RawCell]]:
    # Most cells are floats in range: those need no call.
    return [
        [
            cell if type(cell) is float and -MAX_MAGNITUDE <= cell <= MAX_MAGNITUDE else _number(cell)
            for cell in python_values(cells)
        ]
    ]


def read_categories(cells: Cells) -> list[list[RawCell]]:
    return [[cell if type(cell) is str else _category(cell) for cell in python_values(cells)]]


def _read_by_alias(aliases: Mapping[str, str], cells: Cells) -> list[list[RawCell]]:
    """As `read_categories`, for a column whose context holds numbers or flags as other texts than the shortest."""
    names: list[RawCell] = []
    for cell in python_values(cells):
        name = _category(cell)
        names.append(name if name is None or isinstance(cell, str) else aliases.get(name, name))
    return [names]


def read_empty(cells: Cells) -> list[list[RawCell]]:
    """Cells of a column that was empty in the context: strings stay, for `encode_raw`, and all else is missing.

    Refused is what no kind of column takes.
    """
    names = zip(python_values(cells), map(_category, python_values(cells)), strict=True)
    return [[name if isinstance(cell, str) else math.nan for cell, name in names]]


def _read_datetimes(cells: Cells) -> list[list[RawCell]]:
    return [list(part) for part in zip(*map(_datetime_parts, python_values(cells)), strict=True)]


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


def readers_of(columns: Sequence[Column], codings: Sequence[Coding] | None) -> list[Reader]:
    """One reader per column, by its kind and by what its context held."""
    readers: list[Reader] = []
    position = 0
    for column in columns:
        read = _READERS[column.kind]
        if codings is not None:
            coding = codings[position]
            if column.kind is ColumnKind.NUMBER and coding.is_empty:
                read = read_empty
            elif read is read_categories and coding.codes:
                names = [name for name in coding.codes if isinstance(name, str)]
                aliases = number_aliases(names)
                read = partial(_read_by_alias, aliases) if aliases else read
        readers.append(read)
        position += width(column)
    return readers


_READERS: Mapping[ColumnKind, Reader] = {
    ColumnKind.NUMBER: read_numbers,
    ColumnKind.CATEGORY: read_categories,
    ColumnKind.TEXT: read_categories,
    ColumnKind.DATETIME: _read_datetimes,
}
