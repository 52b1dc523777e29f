"""A model folder is loaded as it was written, or refused with the name of the faulty file."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.core import ColumnKind, Task
from serve.core.errors import InvalidModel, UnknownModel
from serve.settings import StoreSettings
from serve.store import FolderStore, write_model
from serve.store.folder import sha256_of

COLUMNS = [
    {"name": "amount", "kind": "number"},
    {"name": "country", "kind": "category", "description": "ISO 3166"},
    {"name": "at", "kind": "datetime"},
]
TABLE = pa.table(
    {
        "amount": [1.0, None, 3.5, 4.0],
        "country": ["DE", "FR", None, "DE"],
        "at": [datetime.datetime(2026, 1, day) for day in range(1, 5)],
        "fraud": [0, 1, 0, 1],
        "value": [0.5, 1.5, 2.5, 3.5],
        "left_out": ["a", "b", "c", "d"],
    }
)
FACTS = {"name": "some-v3.5", "licence": "Apache-2.0"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "some-v3.5.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def write(repository: Path, checkpoint: Path, facts: dict[str, Any] = FACTS, **changes: Any) -> Path:
    fields = {
        "name": "cards", "version": "1", "task": Task.CLASSIFICATION, "columns": COLUMNS, "target": "fraud", **changes,
    }  # fmt: skip
    return write_model(repository, TABLE, checkpoint, facts, **fields)


def store(repository: Path, **settings: Any) -> FolderStore:
    return FolderStore(StoreSettings(model_repository=repository, **settings))


def test_a_written_model_is_loaded(repository: Path, checkpoint: Path) -> None:
    write(
        repository, checkpoint, class_priors={"0": 0.99, "1": 0.01}, example={"amount": 1, "country": None, "at": None}
    )
    served = store(repository)
    assert served.names() == ["cards"]
    model = served.load("cards")
    assert (model.name, model.version, model.checkpoint_name, model.licence) == (
        "cards",
        "1",
        "some-v3.5",
        "Apache-2.0",
    )
    assert model.checkpoint_path == str(checkpoint)
    assert [column.kind for column in model.context.columns] == [
        ColumnKind.NUMBER, ColumnKind.CATEGORY, ColumnKind.DATETIME,
    ]  # fmt: skip
    assert model.context.cells["amount"] == [1.0, None, 3.5, 4.0]
    assert model.context.cells["country"] == ["DE", "FR", None, "DE"]
    assert model.context.cells["at"][0] == "2026-01-01T00:00:00"
    assert model.context.target == ["0", "1", "0", "1"]
    assert model.context.class_priors == {"0": 0.99, "1": 0.01}
    assert "left_out" not in model.context.cells


def test_a_regression_target_is_numbers(repository: Path, checkpoint: Path) -> None:
    write(repository, checkpoint, task=Task.REGRESSION, target="value")
    assert store(repository).load("cards").context.target == [0.5, 1.5, 2.5, 3.5]


def test_a_model_may_have_its_own_default_timeout(repository: Path, checkpoint: Path) -> None:
    write(repository, checkpoint)
    assert store(repository).load("cards").default_timeout_ms is None
    write(repository, checkpoint, version="2", default_timeout_ms=250)
    assert store(repository).load("cards").default_timeout_ms == 250.0
    edit(repository / "cards" / "2", default_timeout_ms=0)
    with pytest.raises(InvalidModel, match="default_timeout_ms"):
        store(repository).load("cards")


def test_the_newest_version_is_served(repository: Path, checkpoint: Path) -> None:
    for version in ("9", "10", "2"):
        write(repository, checkpoint, version=version)
    assert store(repository).load("cards").version == "10"


def test_the_demo_is_the_default() -> None:
    embedded = FolderStore(StoreSettings())
    assert embedded.names() == ["fraud"]
    model = embedded.load("fraud")
    assert 1_000 <= model.context.num_rows <= 2_000
    assert list(model.context.target).count("1") >= 100
    assert Path(model.checkpoint_path).stat().st_size <= 16 * 2**20
    assert model.licence == "Apache-2.0"
    assert model.context.class_priors is not None
    assert 0.005 <= model.context.class_priors["1"] <= 0.01
    assert model.example is not None


def test_an_unknown_model(repository: Path, checkpoint: Path) -> None:
    write(repository, checkpoint)
    with pytest.raises(UnknownModel, match="'other'"):
        store(repository).load("other")


def test_an_empty_repository_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="holds no model"):
        store(tmp_path).names()
    with pytest.raises(InvalidModel, match="not a folder"):
        store(tmp_path / "absent").names()


def test_a_damaged_file_is_never_trusted(repository: Path, checkpoint: Path) -> None:
    folder = write(repository, checkpoint)
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(InvalidModel, match=r"some-v3\.5\.safetensors has sha256"):
        store(repository).load("cards")
    checkpoint.write_bytes(b"weights")
    (folder / "context.parquet").write_bytes(b"not a table")
    with pytest.raises(InvalidModel, match=r"context\.parquet has sha256"):
        store(repository).load("cards")
    edit(folder, context={"path": "context.parquet", "sha256": sha256_of(folder / "context.parquet")})
    with pytest.raises(InvalidModel, match="not a readable Parquet file"):
        store(repository).load("cards")


def test_an_absent_checkpoint_is_named(repository: Path, checkpoint: Path) -> None:
    write(repository, checkpoint)
    checkpoint.unlink()
    with pytest.raises(InvalidModel, match=r"names .*some-v3\.5\.safetensors, but there is no file"):
        store(repository).load("cards")


def test_a_pickled_checkpoint_is_refused(repository: Path, checkpoint: Path) -> None:
    pickled = checkpoint.with_suffix(".ckpt")
    shutil.copyfile(checkpoint, pickled)
    write(repository, pickled)
    with pytest.raises(InvalidModel, match="only safetensors"):
        store(repository).load("cards")


def test_non_commercial_weights_need_the_operators_consent(repository: Path, checkpoint: Path) -> None:
    write(repository, checkpoint, {**FACTS, "licence": "research-1.0", "non_commercial": True})
    with pytest.raises(InvalidModel, match=r"non-commercial.*research-1\.0.*allow_non_commercial"):
        store(repository).load("cards")
    assert store(repository, allow_non_commercial=True).load("cards").licence == "research-1.0"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"format": 2}, "format"),
        ({"name": "other"}, "lies in cards/1"),
        ({"version": "one"}, "version"),
        ({"columns": []}, "columns"),
        ({"columns": [*COLUMNS, COLUMNS[0]]}, "same name"),
        ({"target": "amount"}, "also an input column"),
        ({"target": "absent"}, r"lacks the column\(s\) absent"),
        ({"columns": [{"name": "absent", "kind": "number"}]}, r"lacks the column\(s\) absent"),
        ({"columns": [{"name": "amount", "kind": "numeric"}]}, "columns.0.kind"),
        ({"class_priors": {"0": 0.5, "1": 0.4}}, "do not sum to 1"),
        ({"example": {"amount": 1}}, "example"),
        ({"options": {"num_members": 0}}, "options.num_members"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_field(
    repository: Path, checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write(repository, checkpoint)
    edit(folder, **changes)
    with pytest.raises(InvalidModel, match=message):
        store(repository).load("cards")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1, 1], "row 1 has no fraud"),
        ([1, 1, 1, 1], "single class"),
        ([0.5, 1.0, 1.0, 0.0], "0.5 is not a class"),
    ],
)
def test_a_bad_target_is_refused(repository: Path, checkpoint: Path, labels: list[Any], message: str) -> None:
    folder = write(repository, checkpoint)
    table = TABLE.drop_columns(["fraud"]).append_column("fraud", pa.array(labels))
    pq.write_table(table, folder / "context.parquet")
    edit(folder, context={"path": "context.parquet", "sha256": sha256_of(folder / "context.parquet")})
    with pytest.raises(InvalidModel, match=message):
        store(repository).load("cards")
