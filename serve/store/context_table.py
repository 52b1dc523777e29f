"""Reads the context of a model: a Parquet table of labelled rows."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.core import Column, Context, Scalar, Task
from serve.core.errors import InvalidModel
from serve.store.manifest import Manifest


def read_context(path: Path, manifest: Manifest, columns: Sequence[Column]) -> Context:
    """Return the labelled rows of a Parquet file whose digest was compared.

    Timestamps and dates become text (`2026-01-31T14:05:00`, in UTC where they have a zone), decimals become numbers,
    NaN becomes None. Class labels become strings. Columns that the manifest does not name are ignored.

    Raises:
        InvalidModel: the file is not Parquet, lacks a column, lacks a label, has a single class, or has a cell that
            JSON could not bring. The message names the row where there is one.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InvalidModel(f"{path} is not a readable Parquet file: {error}") from error
    absent = [name for name in (*(c.name for c in columns), manifest.target) if name not in table.column_names]
    if absent:
        raise InvalidModel(f"{path} lacks the column(s) {', '.join(absent)}, which the manifest names")
    return Context(
        task=manifest.task,
        columns=tuple(columns),
        cells={c.name: _read_cells(path, c.name, table.column(c.name)) for c in columns},
        target=_read_target(path, _values(path, manifest.target, table.column(manifest.target)), manifest),
        class_priors=manifest.class_priors,
    )


def _read_cells(path: Path, name: str, column: pa.ChunkedArray) -> list[Scalar]:
    cells = [_scalar(cell) for cell in _values(path, name, column)]
    for row, cell in enumerate(cells):
        if not isinstance(cell, str | int | float | None):
            raise InvalidModel(f"{path}: row {row}, column {name!r}: a cell of type {column.type} is not supported")
    return cells


def _values(path: Path, name: str, column: pa.ChunkedArray) -> list[Any]:
    """The column's Python values. Raises InvalidModel for a date that Python cannot hold."""
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        # else each value would get the zone's offset of that day, in former centuries with seconds
        column = column.cast(pa.timestamp(column.type.unit, "UTC"))
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError) as error:
        raise InvalidModel(f"{path}: row {_first_unreadable(column)}, column {name!r}: {error}") from error
    return values


def _first_unreadable(column: pa.ChunkedArray) -> int:
    row = -1
    with contextlib.suppress(OverflowError, ValueError):
        for row, cell in enumerate(column):  # noqa: B007
            cell.as_py()
    return row


def _read_target(path: Path, values: list[Any], manifest: Manifest) -> list[str] | list[float]:
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidModel(f"{path}: row {row} has no {manifest.target}; give it a label or leave the row out")
    if manifest.task is Task.REGRESSION:
        return [float(value) for value in values]
    labels = [_label(path, row, value) for row, value in enumerate(values)]
    if len(set(labels)) < 2:
        raise InvalidModel(f"{path}: {manifest.target} has a single class; classification needs two or more")
    return labels


def _label(path: Path, row: int, value: Any) -> str:
    """A class as answers name it: a string, or a whole number without decimals."""
    if isinstance(value, float) and not value.is_integer():
        raise InvalidModel(f"{path}: row {row}: {value} is not a class; classes are strings or whole numbers")
    return str(int(value)) if isinstance(value, bool | float) else str(value)


def _scalar(cell: Any) -> Scalar:
    """A Parquet cell in the form in which JSON would bring it."""
    if isinstance(cell, datetime.datetime):
        return cell.isoformat()
    if isinstance(cell, datetime.date):
        return datetime.datetime.combine(cell, datetime.time()).isoformat()
    if isinstance(cell, decimal.Decimal):
        return float(cell)
    if isinstance(cell, float) and math.isnan(cell):
        return None
    return cell  # type: ignore[no-any-return]  # `_read_cells` refuses the other types
