"""The transactions that the published load run posts."""

import json
from pathlib import Path

from benchmarks.online.demo import NUM_RECORDS, write_records
from training.cards import FEATURES


def test_records_are_transactions_that_json_can_carry(tmp_path: Path) -> None:
    write_records(tmp_path / "cards.jsonl")
    lines = (tmp_path / "cards.jsonl").read_text().splitlines()
    assert len(lines) == NUM_RECORDS
    records = [json.loads(line) for line in lines]
    assert all(list(record) == list(FEATURES) for record in records)
    assert any(record["distance_km"] is None for record in records)
