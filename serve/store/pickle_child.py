"""Runs the child process that opens a pickle, and reads what the child left behind.

A pickle is a program, so the child may be under its control. What is always true:
- the child gets no secret of this process's environment and a limited time, and its process group is killed at the end;
- this process reads the child's answer as data (JSON) and never unpickles anything. It copies files of the child only
  by name and only if they are regular files, so that a link or a pipe in their place is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import serve
from serve.core import Scalar, Task
from serve.core.errors import InvalidModel
from serve.store.folder import EMBEDDED
from serve.store.manifest import ColumnEntry

_log = logging.getLogger(__name__)

CHILD = ("-m", "serve.engine.estimators.sandbox")
"""Arguments of Python that open a pickle."""

DEMO = EMBEDDED / "checkpoints" / "demo-v3.5.safetensors"
_OUTCOME = "outcome.json"
_MAX_OUTCOME_BYTES = 16 * 2**20
_MAX_LINE = 800
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
"""Variables that the child inherits: no credentials, no proxies."""


class Facts(BaseModel):
    """The child's description of an estimator.

    Attributes:
        example: one plausible record, by column name.
        num_context_rows: rows that the estimator was fitted on.
        num_members: ensemble members.
        has_kv_caches: the estimator brings its own KV caches.
        architecture: class name of its network.
        is_known_checkpoint: its weights are those of the demo checkpoint.
        warnings: lines for the log.
        notes: lines for the manifest, on what the operator should know of its answers.
    """

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
    notes: tuple[str, ...] = ()


class _Outcome(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: Facts | None = None
    error: str | None = None


def open_in_child(child: Sequence[str], file: Path, output: Path, timeout_s: float) -> Facts:
    """Have a child process open a pickle and write the parts of the estimator.

    Args:
        child: arguments of Python; `CHILD` except in tests.
        file: the pickle, in a folder that the child may use for temporary files.
        output: an empty folder in the same folder, for what the child writes.
        timeout_s: the most that the child may take.

    Raises:
        InvalidModel: the child's own reason, in one line, or how the child ended.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", *child, str(file), str(output), str(DEMO)],
        cwd=output.parent, env=_environment(output.parent), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        exit_code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise InvalidModel(f"opening the file took more than {timeout_s:.0f} s and was stopped") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with all processes that the child started
        process.wait()
    return _read_outcome(output / _OUTCOME, exit_code)


def take_file(source: Path, target: Path) -> None:
    """Copy a file that the child wrote, readable by its owner alone.

    Raises:
        InvalidModel: the source is not a regular file.
        OSError: the source is absent, or the copy cannot be written.
    """
    with (
        _open_regular(source) as read,
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written,
    ):
        shutil.copyfileobj(read, written, 2**20)


def _open_regular(path: Path) -> BinaryIO:
    """Open a file of the child. A link could lead anywhere, and reading a pipe would never end."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise InvalidModel(f"the process that opened the file left {path.name}, which is not a regular file")
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def _environment(home: Path) -> dict[str, str]:
    return {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {
        "PYTHONPATH": str(Path(serve.__file__).parents[1]),
        "HOME": str(home),
        "TMPDIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "TABPFN_NO_BROWSER": "1",
        "TABPFN_DISABLE_TELEMETRY": "1",
    }


def _read_outcome(path: Path, exit_code: int) -> Facts:
    if exit_code < 0:
        cause = signal.Signals(-exit_code).name
        hint = "; was memory short?" if -exit_code == signal.SIGKILL else ""
        raise InvalidModel(f"the process that opened the file was ended by {cause}{hint}")
    try:
        with _open_regular(path) as file:
            outcome = _Outcome.model_validate_json(file.read(_MAX_OUTCOME_BYTES))
    except (OSError, ValidationError):
        raise InvalidModel(f"the process that opened the file ended with exit code {exit_code} and no reason") from None
    if outcome.facts is None:
        raise InvalidModel(_one_line(outcome.error or "the file cannot be opened"))
    for line in outcome.facts.warnings:
        _log.warning("opening a pickle: %s", _one_line(line))
    return outcome.facts.model_copy(update={"notes": tuple(map(_one_line, outcome.facts.notes))})


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_LINE]
