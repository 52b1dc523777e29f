"""What is posted."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from benchmarks.online.records import join_rows, read_records, vary
from benchmarks.online.wire import predict_request

EXAMPLE = {"amount": 120.5, "count": 40, "zero": 0, "category": "fuel", "is_online": True, "gap": None}


def test_only_numbers_vary_and_whole_ones_stay_whole() -> None:
    records = vary(EXAMPLE, 50, seed=1)
    assert records[0] == EXAMPLE
    assert len({record["amount"] for record in records}) == 50
    assert all(isinstance(record["count"], int) for record in records)
    assert all(30 < record["amount"] < 480 for record in records[1:])
    for name in ("zero", "category", "is_online", "gap"):
        assert {record[name] for record in records} == {EXAMPLE[name]}
    assert records == vary(EXAMPLE, 50, seed=1)
    assert records != vary(EXAMPLE, 50, seed=2)


def test_json_lines_without_the_label(tmp_path: Path) -> None:
    path = tmp_path / "cards.jsonl"
    path.write_text("".join(json.dumps({"amount": n, "is_fraud": 1}) + "\n" for n in range(5)))
    assert read_records(path, ["amount"], most=3) == [{"amount": 0}, {"amount": 1}, {"amount": 2}]


def test_parquet_cells_become_json(tmp_path: Path) -> None:
    path = tmp_path / "cards.parquet"
    at = datetime.datetime(2024, 5, 1, 12, 30)
    parquet.write_table(pa.table({"amount": [1.5, float("nan")], "at": [at, None], "label": ["0", "1"]}), path)
    records = read_records(path, ["amount", "at"], most=10)
    assert records == [{"amount": 1.5, "at": "2024-05-01T12:30:00"}, {"amount": None, "at": None}]


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    lacking, empty, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.csv"
    lacking.write_text('{"amount": 1}\n')
    empty.touch()
    with pytest.raises(ValueError, match="lacks the model's inputs category"):
        read_records(lacking, ["amount", "category"], 5)
    with pytest.raises(ValueError, match="no records"):
        read_records(empty, ["amount"], 5)
    with pytest.raises(ValueError, match=r"takes \.jsonl or \.parquet"):
        read_records(other, ["amount"], 5)


def test_a_request_is_whole_http() -> None:
    request = predict_request("h:1", "fraud", [{"city": "Zürich"}])
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/models/fraud/predict HTTP/1.1\r\nHost: h:1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"records": [{"city": "Zürich"}]}


def test_rows_of_one_request_are_neighbours() -> None:
    assert join_rows([{"a": 0}, {"a": 1}, {"a": 2}], 2) == [
        [{"a": 0}, {"a": 1}],
        [{"a": 1}, {"a": 2}],
        [{"a": 2}, {"a": 0}],
    ]
