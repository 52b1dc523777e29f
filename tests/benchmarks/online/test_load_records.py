"""Records from files and from the model's example, and the requests that are made of them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from benchmarks.online.errors import UnusableInput
from benchmarks.online.records import join_rows, model_records, read_records, vary
from benchmarks.online.wire import native_wire

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
    lacking, empty, broken = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.parquet"
    lacking.write_text('{"amount": 1}\n')
    empty.touch()
    broken.write_text("no Parquet")
    for path, message in (
        (lacking, "lacks the model's inputs category; it has amount"),
        (empty, "no records"),
        (broken, "cannot be read"),
        (tmp_path / "absent.csv", "no such file"),
        (tmp_path / "cards.txt", r"must end in \.csv, \.jsonl, \.parquet"),
    ):
        with pytest.raises(UnusableInput, match=message) as refused:
            read_records(path, ["amount", "category"], 5)
        assert str(path) in str(refused.value), "the message names the file"
    (tmp_path / "list.jsonl").write_text('{"amount": 1}\n[1]\n')
    with pytest.raises(UnusableInput, match="line 2 is not a JSON object"):
        read_records(tmp_path / "list.jsonl", ["amount"], 5)


def test_csv_numbers_are_numbers_and_empty_cells_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "cards.csv"
    path.write_text(
        "amount,count,online,code,at,city,label\n1.5,3,true,007,2024-05-01 10:00:00,Bern,0\n,4,false,008,,,1\n"
    )
    inputs = ["amount", "count", "online", "code", "at", "city"]
    assert read_records(path, inputs, 10, text_columns={"code", "at"}) == [
        {"amount": 1.5, "count": 3, "online": True, "code": "007", "at": "2024-05-01 10:00:00", "city": "Bern"},
        {"amount": None, "count": 4, "online": False, "code": "008", "at": None, "city": None},
    ]
    assert read_records(path, ["code", "at"], 1) == [{"code": 7, "at": "2024-05-01T10:00:00"}]


def test_the_model_says_which_columns_are_text(tmp_path: Path) -> None:
    path = tmp_path / "cards.csv"
    path.write_text("amount,branch,opened\n1,0042,2024-05-01\n")
    inputs = [("amount", "number"), ("branch", "category"), ("opened", "datetime")]
    model = {
        "name": "m",
        "inputs": [{"name": name, "kind": kind} for name, kind in inputs],
        "example": {"amount": 2, "branch": "0001", "opened": "2024-01-01"},
    }
    assert model_records(model, path, 5, seed=1) == [{"amount": 1, "branch": "0042", "opened": "2024-05-01"}]
    assert model_records(model, None, 5, seed=1)[0] == model["example"]
    with pytest.raises(UnusableInput, match="pass --records"):
        model_records({**model, "example": None}, None, 5, seed=1)


def test_a_request_is_whole_http() -> None:
    request = native_wire("fraud").request("h:1", [{"city": "Zürich"}])
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
