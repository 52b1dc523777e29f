"""Makes a model folder from a fitted estimator that was saved as a pickle, a joblib file or `.tabpfn_fit`.

A pickle is a program. What is always true:
- no file is opened before its SHA-256 is the one that the operator pinned. The digest is computed over a private copy,
  and that copy is opened;
- a child process opens it (`pickle_child.py`), never this process;
- this process computes every digest in the manifest;
- a model folder appears whole or not at all, and one import of a name runs at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import serve
from serve.core.errors import InvalidModel
from serve.core.files import atomic_write, lock_for
from serve.settings.model_source import ModelName
from serve.store.folder import sha256_of
from serve.store.manifest import MANIFEST, EstimatorEntry, FileEntry, Manifest
from serve.store.pickle_child import CHILD, Facts, open_in_child, take_file

_log = logging.getLogger(__name__)

VERSION = "1"
TIMEOUT_S = 900.0
_ASIDE = ".importing"
_CHECKPOINT, _STATE = "checkpoint.safetensors", "estimator.pickle"
_DEMO_FACTS = {"name": "tabpfn-serve-demo-v3.5", "licence": "Apache-2.0", "non_commercial": False}


def import_pickle(
    path: Path,
    *,
    name: str,
    sha256: str,
    work_dir: Path,
    timeout_s: float = TIMEOUT_S,
    child: Sequence[str] = CHILD,
) -> Path:
    """Return the model folder `work_dir/NAME/1/` of a fitted estimator, for `folder.read_model`.

    A folder that the same releases made of the same file is used again if it is undamaged.

    Args:
        path: a pickle, a joblib file (compressed or not) or a `.tabpfn_fit` archive on this machine.
        sha256: the SHA-256 of the file, as the operator pinned it.
        timeout_s: the most that opening the file may take.
        child: arguments of Python that open the file; tests give others.

    Raises:
        InvalidModel: in one line, the fault of the file, or why the file could not be opened.
    """
    _check_name(name)
    sha256, folder = sha256.lower(), work_dir.absolute() / name / VERSION
    with _naming(path), _alone(work_dir.absolute(), name) as aside:
        if not _is_made(folder, name, sha256):
            source, output = aside / "source", aside / "output"
            _copy_verified(path, source, sha256)
            output.mkdir(mode=0o700)
            facts = open_in_child(child, source, output, timeout_s)
            with atomic_write(folder, aside=aside / "model", is_folder=True) as made:
                for file in (_CHECKPOINT, _STATE):
                    take_file(output / file, made / file)
                _write_manifest(made, name, sha256, facts)
            _log.info("imported model %s from %s into %s", name, path, folder)
    return folder


def _check_name(name: str) -> None:
    try:
        TypeAdapter(ModelName).validate_python(name)
    except ValidationError:
        raise InvalidModel(f"{name!r} is not a name for a model: use 1 to 64 letters, digits, '.', '_', '-'") from None


@contextlib.contextmanager
def _alone(work_dir: Path, name: str) -> Iterator[Path]:
    """Hold the lock of a model's import and yield a private, empty folder, removed at the end."""
    aside = work_dir / _ASIDE / name
    work_dir.mkdir(parents=True, exist_ok=True)
    aside.parent.mkdir(mode=0o700, exist_ok=True)
    with lock_for(aside):
        shutil.rmtree(aside, ignore_errors=True)  # left by an import that was killed
        aside.mkdir(mode=0o700)
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of every error."""
    try:
        yield
    except InvalidModel as error:
        raise InvalidModel(f"{path}: {error}") from error
    except OSError as error:
        raise InvalidModel(f"{path} cannot be imported: {error.strerror or error}") from error


def _made_by() -> str:
    releases = [f"{name} {version(name)}" for name in ("tabpfn", "scikit-learn", "torch")]
    return ", ".join([f"tabpfn-serve {serve.__version__}", *releases])


def _is_made(folder: Path, name: str, sha256: str) -> bool:
    """Whether the releases that run now made the folder from this file, and all of it is undamaged."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        made = manifest.estimator
        return (
            made is not None
            and (manifest.name, made.source_sha256, made.made_by) == (name, sha256, _made_by())
            and all(_is_undamaged(folder, entry) for entry in (made, manifest.checkpoint))
        )
    except (OSError, ValidationError):
        return False


def _is_undamaged(folder: Path, entry: FileEntry) -> bool:
    return sha256_of(folder / entry.path) == entry.sha256


def _copy_verified(path: Path, copy: Path, sha256: str) -> None:
    """Copy the file and compare the digest of the bytes that were copied."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InvalidModel(f"{sha256!r} is not a SHA-256: 64 hexadecimal digits, as `sha256sum {path.name}` prints")
    digest = hashlib.sha256()
    with path.open("rb") as source, os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while part := source.read(2**20):
            digest.update(part)
            file.write(part)
    if digest.hexdigest() != sha256:
        raise InvalidModel(
            f"the file has sha256 {digest.hexdigest()}, but {sha256} is pinned, so it is not opened; "
            "if you trust the file, pin its digest"
        )


def _write_manifest(made: Path, name: str, sha256: str, facts: Facts) -> None:
    target = "target"  # the labels are inside the estimator, but a manifest has a target
    while any(column.name == target for column in facts.columns):
        target += "_"
    try:
        manifest = Manifest(
            name=name,
            version=VERSION,
            task=facts.task,
            description="A fitted estimator, imported.",
            columns=facts.columns,
            target=target,
            estimator=EstimatorEntry(
                path=Path(_STATE), sha256=sha256_of(made / _STATE), source_sha256=sha256,
                made_by=_made_by(), num_context_rows=facts.num_context_rows, num_members=facts.num_members,
                notes=facts.notes,
            ),
            checkpoint={"path": _CHECKPOINT, "sha256": sha256_of(made / _CHECKPOINT), **_checkpoint_facts(facts)},
            example=facts.example,
        )  # fmt: skip
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise InvalidModel(f"the estimator in the file makes no valid manifest: {message}") from error
    (made / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")


def _checkpoint_facts(facts: Facts) -> dict[str, Any]:
    """Name and licence of the weights. A pickle states neither; the demo checkpoint is known by its weights."""
    if facts.is_known_checkpoint:
        return _DEMO_FACTS
    is_v2 = facts.architecture == "TabPFNV2"
    return {
        "name": f"{facts.architecture} of a pickle",
        "licence": "unknown, as a pickle states none; TabPFN 2.5 and newer: non-commercial, if not agreed otherwise",
        "non_commercial": not is_v2,
    }
