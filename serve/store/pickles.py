"""Fitted estimators that users keep as pickles (`tabpfn_model.pkl`, joblib, `.tabpfn_fit`), made into model folders.

A pickle is a program. What is always true:
- nothing of a file is opened before its SHA-256 is the one that the operator pinned; it is digested while it is copied
  into a folder of our own, so that what was digested is what is opened;
- it is opened in a child process (`engine/pickle_import.py`), never here. The child is given no secret of this
  process's environment, a time limit, and at its end its process group is killed;
- what the child says is read as data and checked, and every digest in the manifest is computed here;
- a model folder appears whole or not at all: it is made aside and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

import serve
from serve.core import Scalar, Task
from serve.core.errors import InvalidModel
from serve.store.folder import EMBEDDED, sha256_of
from serve.store.manifest import MANIFEST, ColumnEntry, EstimatorEntry, FileEntry, Manifest, Name

_log = logging.getLogger(__name__)

VERSION = "1"
TIMEOUT_S = 900.0
_CHILD = ("-m", "serve.engine.estimators.sandbox")
_ASIDE = ".importing"
_CHECKPOINT, _STATE, _OUTCOME = "checkpoint.safetensors", "estimator.pickle", "outcome.json"
_MAX_OUTCOME_BYTES = 16 * 2**20
_MAX_LINE = 500
_DEMO = EMBEDDED / "checkpoints" / "demo-v3.5.safetensors"
_OWN = {"name": "tabpfn-serve-demo-v3.5", "licence": "Apache-2.0", "non_commercial": False}
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
"""Of the environment, to the child: no credentials, no proxies."""


class _Facts(BaseModel):
    """What the child says of an estimator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    columns: tuple[ColumnEntry, ...]
    example: dict[str, Scalar]
    num_context_rows: int
    num_members: int
    has_kv_caches: bool
    architecture: str = Field(pattern=r"^[A-Za-z0-9_]{1,64}$")
    is_known_checkpoint: bool
    warnings: tuple[str, ...]


class _Outcome(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: _Facts | None = None
    error: str | None = None


def import_pickle(
    path: Path,
    *,
    name: str,
    sha256: str,
    work_dir: Path,
    timeout_s: float = TIMEOUT_S,
    child: Sequence[str] = _CHILD,
) -> Path:
    """The model folder `work_dir/NAME/1/` of a fitted estimator, for `folder.read_model`.

    One that was made before of the same file by the same releases, and is undamaged, is taken as it is.

    Args:
        path: a pickle, a joblib file (compressed or not) or a `.tabpfn_fit` archive on this machine.
        sha256: of the file, as the operator pinned it.
        timeout_s: most that opening it may take.
        child: arguments of Python that open it; others than ours are for tests.

    Raises:
        InvalidModel: in one line, what is wrong with the file, or that it could not be opened in time.
    """
    _check_name(name)
    sha256, folder = sha256.lower(), work_dir.absolute() / name / VERSION
    with _named(path), _alone(work_dir.absolute(), name) as aside:
        if not _is_made(folder, name, sha256):
            _copy_verified(path, aside / "source", sha256)
            made = aside / "made"
            made.mkdir(mode=0o700)
            facts = _run(child, aside / "source", made, timeout_s)
            _write_manifest(made, name, sha256, facts)
            _put(made, folder)
            _log.info("model %s is imported from %s into %s", name, path, folder)
    return folder


def _check_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise InvalidModel(f"{name!r} is no name for a model: 1 to 64 letters, digits, '.', '_', '-'") from None


@contextlib.contextmanager
def _alone(work_dir: Path, name: str) -> Iterator[Path]:
    """A folder of our own beside the models, emptied of what a killed import left; one import of a name at a time."""
    aside = work_dir / _ASIDE / name
    work_dir.mkdir(parents=True, exist_ok=True)
    aside.parent.mkdir(mode=0o700, exist_ok=True)
    with (aside.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever is wrong names the file."""
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
    """Whether the folder is this file's, whole and of the releases that run now."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        made = manifest.estimator
        return (
            made is not None
            and (manifest.name, made.source_sha256, made.made_by) == (name, sha256, _made_by())
            and all(_is_whole(folder, entry) for entry in (made, manifest.checkpoint))
        )
    except (OSError, ValidationError):
        return False


def _is_whole(folder: Path, entry: FileEntry) -> bool:
    return sha256_of(folder / entry.path) == entry.sha256


def _copy_verified(path: Path, copy: Path, sha256: str) -> None:
    """Copy the file and digest what was copied."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InvalidModel(f"{sha256!r} is no SHA-256: 64 hexadecimal digits")
    digest = hashlib.sha256()
    with path.open("rb") as source, os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while part := source.read(2**20):
            digest.update(part)
            file.write(part)
    if digest.hexdigest() != sha256:
        raise InvalidModel(f"its sha256 is {digest.hexdigest()}, the pinned one {sha256}; it is not opened")


def _run(child: Sequence[str], copy: Path, made: Path, timeout_s: float) -> _Facts:
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {
        "PYTHONPATH": str(Path(serve.__file__).parents[1]),
        "HOME": str(made.parent),
        "TMPDIR": str(made.parent),
        "HF_HUB_OFFLINE": "1",
        "TABPFN_NO_BROWSER": "1",
        "TABPFN_DISABLE_TELEMETRY": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", *child, str(copy), str(made), str(_DEMO)],
        cwd=made.parent, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        exit_code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise InvalidModel(f"opening it took more than {timeout_s:.0f} s and was stopped") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it started, too
        process.wait()
    return _read_outcome(made / _OUTCOME, exit_code)


def _read_outcome(path: Path, exit_code: int) -> _Facts:
    if exit_code < 0:
        cause = signal.Signals(-exit_code).name
        hint = "; was memory short?" if -exit_code == signal.SIGKILL else ""
        raise InvalidModel(f"the process that opened it was ended by {cause}{hint}")
    try:
        with path.open("rb") as file:
            outcome = _Outcome.model_validate_json(file.read(_MAX_OUTCOME_BYTES))
    except (OSError, ValidationError):
        raise InvalidModel(f"the process that opened it ended with exit code {exit_code} and no word") from None
    path.unlink()
    if outcome.facts is None:
        raise InvalidModel(" ".join((outcome.error or "it cannot be opened").split())[:_MAX_LINE])
    for line in outcome.facts.warnings:
        _log.warning("opening a pickle: %s", " ".join(line.split())[:_MAX_LINE])
    return outcome.facts


def _write_manifest(made: Path, name: str, sha256: str, facts: _Facts) -> None:
    target = "target"  # nobody asks for it: the labels are inside the estimator
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
            ),
            checkpoint={"path": _CHECKPOINT, "sha256": sha256_of(made / _CHECKPOINT), **_checkpoint_facts(facts)},
            example=facts.example,
        )  # fmt: skip
    except ValidationError as error:
        raise InvalidModel(f"no model can be made of it: {error.errors(include_url=False)[0]['msg']}") from error
    (made / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")


def _checkpoint_facts(facts: _Facts) -> dict[str, Any]:
    """Name and licence: a pickle tells neither, but the demo checkpoint's weights are known, and v2's licence."""
    if facts.is_known_checkpoint:
        return _OWN
    is_v2 = facts.architecture == "TabPFNV2"
    return {
        "name": f"{facts.architecture} of a pickle",
        "licence": "unknown, as a pickle does not tell; TabPFN 2.5 and newer: non-commercial, if not agreed otherwise",
        "non_commercial": not is_v2,
    }


def _put(made: Path, folder: Path) -> None:
    """In one step, in the place of what was there."""
    folder.parent.mkdir(exist_ok=True)
    if folder.exists():
        folder.rename(made.parent / "old")  # goes with the folder aside
    made.rename(folder)
