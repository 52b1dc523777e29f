"""A context's Parquet cells reach the engine as JSON would bring them, or are refused by row and column."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.core import Column, ColumnKind, Task
from serve.core.errors import InvalidModel
from serve.engine import datetimes
from serve.store.context_table import read_context
from serve.store.manifest import Manifest

COLUMN = Column("x", ColumnKind.DATETIME)
DIGEST = "0" * 64


def cells(folder: Path, column: pa.Array, target: pa.Array | None = None) -> list[Any]:
    """The cells of column `x` of a context."""
    labels = pa.array(["ab"[row % 2] for row in range(len(column))]) if target is None else target
    pq.write_table(pa.table({"x": column, "y": labels}), folder / "context.parquet")
    manifest = Manifest.model_validate(
        {
            "name": "m",
            "version": "1",
            "task": Task.CLASSIFICATION,
            "columns": [{"name": "x", "kind": COLUMN.kind}],
            "target": "y",
            "context": {"path": "context.parquet", "sha256": DIGEST},
            "checkpoint": {"path": "c.safetensors", "sha256": DIGEST, "name": "c", "licence": "some"},
        }
    )
    return list(read_context(folder / "context.parquet", manifest, [COLUMN]).cells["x"])


MOMENT = dt.datetime(2026, 3, 4, 5, 30, 15, 250_000, tzinfo=dt.UTC)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "+05:30"])
def test_a_timestamp_is_read_by_the_grammar_of_requests(tmp_path: Path, unit: str, zone: str | None) -> None:
    given = [MOMENT if zone else MOMENT.replace(tzinfo=None), None]
    text, missing = cells(tmp_path, pa.array(given, pa.timestamp(unit, zone)))
    assert missing is None
    assert datetimes.parse(text) == MOMENT


def test_a_timestamp_of_a_former_century_is_read(tmp_path: Path) -> None:
    """Berlin's clocks then were 53 minutes and 28 seconds ahead, which is no zone of the grammar."""
    moment = dt.datetime(1874, 12, 7, 18, 40, tzinfo=dt.UTC)
    texts = cells(tmp_path, pa.array([moment, MOMENT], pa.timestamp("us", "Europe/Berlin")))
    assert [datetimes.parse(text) for text in texts] == [moment, MOMENT]


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_the_last_day_that_python_holds_is_read_in_any_zone(tmp_path: Path, unit: str) -> None:
    moment = (
        dt.datetime(2262, 1, 1, 12, tzinfo=dt.UTC) if unit == "ns" else dt.datetime(9999, 12, 31, 23, tzinfo=dt.UTC)
    )
    text, _ = cells(tmp_path, pa.array([moment, None], pa.timestamp(unit, "Asia/Tokyo")))
    assert datetimes.parse(text) == moment


def test_a_date_is_its_midnight(tmp_path: Path) -> None:
    text, _ = cells(tmp_path, pa.array([dt.date(2026, 3, 4), None]))
    assert datetimes.parse(text) == dt.datetime(2026, 3, 4, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0, 10**16], pa.timestamp("ms")), r"row 1, column 'x': "),
        (pa.array([0, 10**16], pa.timestamp("ms", "Europe/Berlin")), r"row 1, column 'x': "),
        (pa.array([0, 10**9], pa.date32()), r"row 1, column 'x': "),
        (pa.array([None, 1000], pa.time32("ms")), r"row 1, column 'x': a cell of type time32\[ms\] is not supported"),
        (pa.array([None, 1000], pa.duration("s")), r"row 1, column 'x': a cell of type duration\[s\] is not supported"),
        (pa.array([None, b"x"]), r"row 1, column 'x': a cell of type binary is not supported"),
        (pa.array([None, [1]]), r"row 1, column 'x': a cell of type list.* is not supported"),
    ],
)
def test_a_cell_that_json_could_not_bring_is_refused_by_its_row(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        cells(tmp_path, column)


def test_a_label_that_python_cannot_hold_is_refused_by_its_row(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="row 1, column 'y': "):
        cells(tmp_path, pa.array([None, None], pa.string()), pa.array([0, 10**16], pa.timestamp("ms")))
