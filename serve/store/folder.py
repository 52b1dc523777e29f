"""A model repository in a local folder: `NAME/VERSION/manifest.json` with a Parquet context beside it.

Nothing is trusted: digests are compared before a byte is parsed, weights are safetensors (no pickle), a licence that
forbids commercial use needs the operator's word, and whatever is wrong names the file.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from serve.core import Column, Context, EnsembleOptions, ModelDefinition, Scalar, Task
from serve.core.errors import InvalidModel, UnknownModel
from serve.settings import StoreSettings
from serve.store.manifest import MANIFEST, FileEntry, Manifest

EMBEDDED = Path(__file__).parent / "embedded"


class FolderStore:
    """`ModelStore` on a folder; the demo model inside the package where no folder is set."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._root = (settings.model_repository or EMBEDDED).resolve()

    def names(self) -> list[str]:
        if not self._root.is_dir():
            raise InvalidModel(f"model repository {self._root} is not a folder")
        names = sorted({path.parent.parent.name for path in self._root.glob(f"*/*/{MANIFEST}")})
        if not names:
            raise InvalidModel(f"model repository {self._root} holds no model (NAME/VERSION/{MANIFEST})")
        return names

    def load(self, name: str) -> ModelDefinition:
        folder = self._newest(name)
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (name, folder.name):
            raise InvalidModel(
                f"{folder / MANIFEST} says {manifest.name!r} version {manifest.version!r}, "
                f"but lies in {name}/{folder.name}"
            )
        if manifest.estimator is not None:
            raise InvalidModel(
                f"{folder / MANIFEST} holds a fitted estimator, a pickle, which is served by its pinned digest only: "
                f"add {name}={folder}@sha256:DIGEST to store.models, with the digest of the {MANIFEST} that you trust"
            )
        return read_model(folder, manifest, allow_non_commercial=self._settings.allow_non_commercial)

    def _newest(self, name: str) -> Path:
        versions = [path.parent for path in self._root.glob(f"*/*/{MANIFEST}") if path.parent.parent.name == name]
        if not versions:
            raise UnknownModel(f"model repository {self._root} has no model {name!r}")
        return max(versions, key=lambda folder: int(folder.name) if folder.name.isdigit() else -1)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises InvalidModel naming the file."""
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from error


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Raises InvalidModel that begins with `place`."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidModel(f"{place}: {field}: {first['msg']}") from error


def read_model(folder: Path, manifest: Manifest, *, allow_non_commercial: bool) -> ModelDefinition:
    """The model of a folder, every file compared with its digest. Raises InvalidModel naming the file at fault."""
    checkpoint = _verified(folder, manifest.checkpoint)
    if checkpoint.suffix != ".safetensors":
        raise InvalidModel(f"{checkpoint}: only safetensors checkpoints are served (a pickle can run code)")
    if manifest.checkpoint.non_commercial and not allow_non_commercial:
        raise InvalidModel(
            f"{folder / MANIFEST}: checkpoint {manifest.checkpoint.name!r} is licensed for non-commercial use "
            f"({manifest.checkpoint.licence}); set store.allow_non_commercial if yours is such a use"
        )
    return ModelDefinition(
        name=manifest.name,
        version=manifest.version,
        description=manifest.description,
        context=_context(folder, manifest),
        checkpoint_path=str(checkpoint),
        checkpoint_name=manifest.checkpoint.name,
        licence=manifest.checkpoint.licence,
        options=_options(manifest),
        example=manifest.example,
        default_timeout_ms=manifest.default_timeout_ms,
        estimator_path=None if manifest.estimator is None else str(_verified(folder, manifest.estimator)),
    )


def _verified(folder: Path, entry: FileEntry) -> Path:
    """The file's absolute path, its digest compared."""
    path = (folder / entry.path).resolve()
    if not path.is_file():
        raise InvalidModel(f"{folder / MANIFEST} names {entry.path}, which is not there ({path})")
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from error
    if digest != entry.sha256:
        raise InvalidModel(f"{path} has sha256 {digest}, the manifest says {entry.sha256}")
    return path


def _context(folder: Path, manifest: Manifest) -> Context:
    if manifest.context is not None:
        return _read_context(_verified(folder, manifest.context), manifest)
    assert manifest.estimator is not None, "this is a bug: a manifest has one of the two"
    return Context(manifest.task, _columns(manifest), {}, (), num_hidden_rows=manifest.estimator.num_context_rows)


def _options(manifest: Manifest) -> EnsembleOptions:
    """For an estimator only what is told of it: it was fitted with its own."""
    if manifest.estimator is not None:
        return EnsembleOptions(num_members=manifest.estimator.num_members)
    return EnsembleOptions(**manifest.options.model_dump())


def _columns(manifest: Manifest) -> tuple[Column, ...]:
    return tuple(Column(entry.name, entry.kind, entry.description) for entry in manifest.columns)


def _read_context(path: Path, manifest: Manifest) -> Context:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InvalidModel(f"{path} is not a readable Parquet file: {error}") from error
    wanted = [column.name for column in manifest.columns]
    absent = [name for name in (*wanted, manifest.target) if name not in table.column_names]
    if absent:
        raise InvalidModel(f"{path} lacks the column(s) {', '.join(absent)}")
    cells = {name: [_scalar(cell) for cell in table.column(name).to_pylist()] for name in wanted}
    target = _read_target(path, table.column(manifest.target).to_pylist(), manifest)
    return Context(
        task=manifest.task,
        columns=_columns(manifest),
        cells=cells,
        target=target,
        class_priors=manifest.class_priors,
    )


def _read_target(path: Path, values: list[Any], manifest: Manifest) -> list[str] | list[float]:
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidModel(f"{path}: row {row} has no {manifest.target}")
    if manifest.task is Task.REGRESSION:
        return [float(value) for value in values]
    labels = [_label(path, row, value) for row, value in enumerate(values)]
    if len(set(labels)) < 2:
        raise InvalidModel(f"{path}: {manifest.target} has a single class; classification needs two or more")
    return labels


def _label(path: Path, row: int, value: Any) -> str:
    """A class as the answers will name it: a string, or a whole number without its decimals."""
    if isinstance(value, float) and not value.is_integer():
        raise InvalidModel(f"{path}: row {row}: {value} is no class; classes are strings or whole numbers")
    return str(int(value)) if isinstance(value, bool | float) else str(value)


def _scalar(cell: Any) -> Scalar:
    """A Parquet cell as JSON would have brought it."""
    if isinstance(cell, datetime.datetime):
        return cell.isoformat()
    if isinstance(cell, datetime.date):
        return datetime.datetime.combine(cell, datetime.time()).isoformat()
    if isinstance(cell, decimal.Decimal):
        return float(cell)
    if isinstance(cell, float) and math.isnan(cell):
        return None
    return cell  # type: ignore[no-any-return]  # the row encoder judges what is left
