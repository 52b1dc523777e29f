"""The records that are posted: those of a file, or the model's own example varied. All are drawn before the run."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.online.errors import UnusableInput

Record = Mapping[str, Any]
SPREAD = 0.25
SUFFIXES = (".csv", ".jsonl", ".parquet")


def model_records(model: Mapping[str, Any], file: Path | None, most: int, seed: int) -> list[Record]:
    """Records for one model: the first `most` of a file, or `most` variations of the model's example.

    Args:
        model: what `GET /v1/models/{model}` says.

    Raises UnusableInput.
    """
    example = model.get("example")
    if file is not None:
        # A category such as "007" must stay text, and a moment must reach the server as the file states it.
        is_text = {
            each["name"]
            for each in model["inputs"]
            if each["kind"] in ("text", "datetime") or isinstance((example or {}).get(each["name"]), str)
        }
        return read_records(file, [each["name"] for each in model["inputs"]], most, is_text)
    if example is None:
        raise UnusableInput(
            f"the model {model['name']} has no example record: pass --records FILE (.csv, .jsonl, .parquet)"
        )
    return vary(example, most, seed)


def read_records(path: Path, inputs: Sequence[str], most: int, text_columns: Collection[str] = ()) -> list[Record]:
    """The first `most` records of a file. Only the model's `inputs` are kept, since labels are not posted.

    Args:
        text_columns: columns of a CSV file whose values stay text even where all of them look like numbers or dates.

    Raises UnusableInput.
    """
    read = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}.get(path.suffix)
    if read is None:
        raise UnusableInput(f"--records {path}: the file's name must end in {', '.join(SUFFIXES)}")
    try:
        rows = list(itertools.islice(read(path, text_columns), most))
    except FileNotFoundError:
        raise UnusableInput(f"--records {path}: there is no such file") from None
    except (OSError, ValueError) as error:  # pyarrow's and json's errors are ValueErrors
        raise UnusableInput(f"--records {path} cannot be read: {error}") from error
    if not rows:
        raise UnusableInput(f"--records {path}: the file holds no records")
    missing = [name for name in inputs if name not in rows[0]]
    if missing:
        raise UnusableInput(
            f"--records {path}: the file lacks the model's inputs {', '.join(missing)}; it has {', '.join(rows[0])}"
        )
    return [{name: _plain(row.get(name)) for name in inputs} for row in rows]


def _csv_rows(path: Path, text_columns: Collection[str]) -> Iterator[Record]:
    """Numbers as numbers, true and false as truth values; an empty cell is a missing value."""
    import pyarrow as pa
    from pyarrow import csv

    types = csv.ConvertOptions(column_types={name: pa.string() for name in text_columns})
    with csv.open_csv(path, convert_options=types) as batches:
        for batch in batches:
            for row in batch.to_pylist():
                yield {name: None if value == "" else value for name, value in row.items()}


def _json_rows(path: Path, _: Collection[str]) -> Iterator[Record]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object of column names to values")
            yield row


def _parquet_rows(path: Path, _: Collection[str]) -> Iterator[Record]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def vary(example: Record, num_records: int, seed: int) -> list[Record]:
    """The example, and copies of it whose numbers are each scaled by exp(N(0, 0.25)); whole numbers stay whole.

    Strings, truth values, zeros and missing values stay as they are. Such rows have the right size and shape to measure
    time. They are no real data, so pass `--records` where the answers matter.
    """
    rng = np.random.default_rng(seed)
    return [example, *(_varied(example, rng) for _ in range(num_records - 1))]


def _varied(example: Record, rng: np.random.Generator) -> Record:
    def scaled(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        factor = math.exp(SPREAD * rng.standard_normal())
        return round(value * factor) if isinstance(value, int) else round(value * factor, 6)

    return {name: scaled(value) for name, value in example.items()}


def join_rows(records: Sequence[Record], rows: int) -> list[list[Record]]:
    """The rows of each request: `rows` neighbours, one request starting at each record."""
    return [[records[(start + step) % len(records)] for step in range(rows)] for start in range(len(records))]


def _plain(value: Any) -> Any:
    """A cell as JSON has it: no NaN, dates as ISO 8601."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value
