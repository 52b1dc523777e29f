"""What is posted: real records, or the model's own example varied; all drawn before the run."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Record = Mapping[str, Any]
SPREAD = 0.25


def read_records(path: Path, inputs: Sequence[str], most: int) -> list[Record]:
    """The first `most` records of a JSON Lines or Parquet file, only the model's `inputs`: labels are not posted."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        rows = parquet.read_table(path).slice(0, most).to_pylist()
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for _, line in zip(range(most), lines, strict=False)]
    else:
        raise ValueError(f"--records takes .jsonl or .parquet, not {path.name}")
    if not rows:
        raise ValueError(f"{path.name} holds no records")
    missing = [name for name in inputs if name not in rows[0]]
    if missing:
        raise ValueError(f"{path.name} lacks the model's inputs {', '.join(missing)}")
    return [{name: _plain(row.get(name)) for name in inputs} for row in rows]


def vary(example: Record, num_records: int, seed: int) -> list[Record]:
    """The example, and copies of it whose numbers are each scaled by exp(N(0, 0.25)); whole numbers stay whole.

    Strings, truth values, zeros and missing values stay. Such rows are the right size and shape for measuring time;
    they are no real transactions, so pass `--records` where the answers matter.
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
    """One request's rows each: `rows` neighbours, starting at every record."""
    return [[records[(start + step) % len(records)] for step in range(rows)] for start in range(len(records))]


def get_request(host: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tabpfn-serve-load\r\n\r\n".encode("ascii")


def _plain(value: Any) -> Any:
    """A Parquet cell as JSON has it: no NaN, dates as ISO 8601."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value
