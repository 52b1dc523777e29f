"""A model repository in a local folder: `NAME/VERSION/manifest.json`, with a Parquet context beside it.

What is always true:
- every file is compared with its SHA-256 before a byte of it is parsed;
- weights are safetensors, never a pickle;
- a checkpoint whose licence forbids commercial use is served only if the operator allows it;
- an error names the file at fault.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from pydantic import ValidationError

from serve.core import Column, Context, EnsembleOptions, ModelDefinition
from serve.core.errors import InvalidModel, UnknownModel
from serve.settings import StoreSettings
from serve.store.context_table import read_context
from serve.store.manifest import MANIFEST, FileEntry, Manifest

_log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded"
"""The model repository inside the package, with the demo model."""


class FolderStore:
    """A `ModelStore` that serves a folder, by default the demo model inside the package.

    Args:
        settings: `model_repository` and `allow_non_commercial` are used.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._root = (settings.model_repository or EMBEDDED).resolve()

    def names(self) -> list[str]:
        """Return the names of the models in the folder, sorted.

        Raises:
            InvalidModel: the folder does not exist, or holds no model.
        """
        if not self._root.is_dir():
            raise InvalidModel(f"model repository {self._root} is not a folder; correct store.model_repository")
        names = sorted({path.parent.parent.name for path in self._root.glob(f"*/*/{MANIFEST}")})
        if not names:
            raise InvalidModel(
                f"model repository {self._root} holds no model: no file in it has a path NAME/VERSION/{MANIFEST}"
            )
        return names

    def load(self, name: str) -> ModelDefinition:
        """Return the highest version of a model.

        Raises:
            UnknownModel: the folder holds no model of this name.
            InvalidModel: a file is absent, damaged or inconsistent, or its licence forbids commercial use.
        """
        folder = self._newest(name)
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (name, folder.name):
            raise InvalidModel(
                f"{folder / MANIFEST} is of model {manifest.name!r}, version {manifest.version!r}, "
                f"but lies in {name}/{folder.name}; rename the folder or correct the manifest"
            )
        if manifest.estimator is not None:
            raise InvalidModel(
                f"{folder / MANIFEST} holds a fitted estimator, which is a pickle and is served by its pinned digest "
                f"only: add {name}={folder}@sha256:DIGEST to store.models, with the SHA-256 of the {MANIFEST} that "
                "you trust as DIGEST"
            )
        return read_model(folder, manifest, allow_non_commercial=self._settings.allow_non_commercial)

    def _newest(self, name: str) -> Path:
        versions = [path.parent for path in self._root.glob(f"*/*/{MANIFEST}") if path.parent.parent.name == name]
        if not versions:
            raise UnknownModel(f"model repository {self._root} has no model {name!r}")
        return max(versions, key=lambda folder: int(folder.name) if folder.name.isdigit() else -1)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a model folder.

    Raises:
        InvalidModel: the manifest is absent or wrong; the message names the file and the field.
    """
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from error


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Return a manifest from the bytes of its file.

    Args:
        place: path or address of the file, for the message.

    Raises:
        InvalidModel: the manifest is wrong; the message names `place` and the field.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidModel(f"{place}: {field}: {first['msg']}") from error


def read_model(folder: Path, manifest: Manifest, *, allow_non_commercial: bool) -> ModelDefinition:
    """Return the model of a folder, with every file compared with its digest.

    Args:
        allow_non_commercial: accept a checkpoint whose licence forbids commercial use.

    Raises:
        InvalidModel: a file is absent, damaged or inconsistent, or the licence is not accepted.
    """
    checkpoint = _verified(folder, manifest.checkpoint)
    if checkpoint.suffix != ".safetensors":
        raise InvalidModel(
            f"{checkpoint}: only safetensors checkpoints are served, because a pickle can run code; convert the file "
            "by tabpfn's save_as_safetensors (docs/models.md)"
        )
    if manifest.checkpoint.non_commercial and not allow_non_commercial:
        raise InvalidModel(
            f"{folder / MANIFEST}: checkpoint {manifest.checkpoint.name!r} is licensed for non-commercial use "
            f"({manifest.checkpoint.licence}); set store.allow_non_commercial if your use is non-commercial"
        )
    for note in () if manifest.estimator is None else manifest.estimator.notes:
        _log.warning("model %s: %s", manifest.name, note)
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
    """Return the absolute path of a file whose digest was compared."""
    path = (folder / entry.path).resolve()
    if not path.is_file():
        raise InvalidModel(f"{folder / MANIFEST} names {entry.path}, but there is no file {path}")
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read: {error.strerror}") from error
    if digest != entry.sha256:
        raise InvalidModel(
            f"{path} has sha256 {digest}, but {folder / MANIFEST} says {entry.sha256}; the file was changed or damaged"
        )
    return path


def _context(folder: Path, manifest: Manifest) -> Context:
    columns = tuple(Column(entry.name, entry.kind, entry.description) for entry in manifest.columns)
    if manifest.context is not None:
        return read_context(_verified(folder, manifest.context), manifest, columns)
    assert manifest.estimator is not None, "this is a bug: a manifest has a context or an estimator"
    return Context(manifest.task, columns, {}, (), num_hidden_rows=manifest.estimator.num_context_rows)


def _options(manifest: Manifest) -> EnsembleOptions:
    """The options of the fit. A fitted estimator has its own, of which only the number of members is shown."""
    if manifest.estimator is not None:
        return EnsembleOptions(num_members=manifest.estimator.num_members)
    return EnsembleOptions(**manifest.options.model_dump())
