"""The demo model in the package is the one that `training/demo.py` makes."""

from pathlib import Path

import pyarrow.parquet as pq

from serve.store.folder import EMBEDDED, read_manifest
from training.demo import CHECKPOINT, make_demo


def test_the_shipped_demo_model_is_made_from_its_seed(tmp_path: Path) -> None:
    folder, shipped = make_demo(CHECKPOINT, tmp_path), EMBEDDED / "fraud" / "1"
    assert pq.read_table(folder / "context.parquet").equals(pq.read_table(shipped / "context.parquet"))
    made, expected = read_manifest(folder), read_manifest(shipped)
    assert made.checkpoint.sha256 == expected.checkpoint.sha256
    unlike = {"context", "checkpoint"}  # paths, and bytes that depend on the release of pyarrow
    assert made.model_dump(exclude=unlike) == expected.model_dump(exclude=unlike)
