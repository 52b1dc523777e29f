"""No KV folder is a reason not to start: full, read-only, absent, no folder at all, shared, left by a killed start."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import definition
from safetensors import safe_open

from serve.core import Batch, Matrix
from serve.core.errors import StartupError
from serve.engine import kv_file
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.engine import TabPFNEngine
from serve.engine.tensor_file import bytes_of, write_tensors
from serve.settings import EngineSettings

TOLERANCE = EngineSettings().allowed_difference


class Folders:
    """Folders for KV caches that cannot hold them. The disks are real ones, in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disks: list[Path] = []

    def file(self) -> Path:
        (self._path / "file").touch()
        return self._path / "file"

    def below_a_file(self) -> Path:
        return self.file() / "kv"

    def unmakeable(self) -> Path:
        return Path("/proc/kv")  # not even root makes a folder there

    def full(self) -> Path:
        return self._disk("size=64k")

    def no_inodes(self) -> Path:
        return self._disk("nr_inodes=1")

    def read_only(self) -> Path:
        return self._disk("ro")

    def absent_on_a_read_only_disk(self) -> Path:
        return self._disk("ro") / "absent" / "kv"

    def _disk(self, options: str) -> Path:
        disk = self._path / "disk"
        disk.mkdir()
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False)
        if mount.returncode:
            pytest.skip("this process may not mount a disk")
        self._disks.append(disk)
        return disk

    def close(self) -> None:
        for disk in self._disks:
            subprocess.run(["umount", disk], check=True)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    made = Folders(tmp_path)
    yield made
    made.close()


def start(checkpoint: Path, folder: Path) -> Matrix:
    """The answers to canary rows after a start."""
    engine = TabPFNEngine(EngineSettings(kv_cache_dir=folder), max_batch_rows=8)
    context = engine.fit(definition(checkpoint, num_rows=40))
    return engine.predict(Batch(context, canary_rows(context.encode_context())))


def start_checked(checkpoint: Path, folder: Path) -> None:
    engine = TabPFNEngine(EngineSettings(kv_cache_dir=folder), max_batch_rows=8)
    context = engine.fit(definition(checkpoint, num_rows=40))
    check_parity(engine, context, canary_rows(context.encode_context()), TOLERANCE)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return start(checkpoint, tmp_path_factory.mktemp("kv"))


WHERE = [name for name in vars(Folders) if name[0] != "_" and name != "close"]


@pytest.mark.parametrize("where", WHERE)
def test_a_folder_that_cannot_hold_the_caches_is_no_reason_not_to_start(
    checkpoint: Path, expected: Matrix, folders: Folders, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder: Path = getattr(folders, where)()
    with caplog.at_level(logging.WARNING):
        answers = start(checkpoint, folder)
    np.testing.assert_array_equal(answers, expected)
    lines = [record.getMessage() for record in caplog.records if "is not written" in record.getMessage()]
    assert len(lines) == 1
    assert "the next start builds the caches again" in lines[0]
    assert not any(record.exc_info for record in caplog.records)
    assert not folder.is_dir() or list(folder.iterdir()) == []


@contextlib.contextmanager
def quota(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_quota_leaves_the_file_that_was_there(
    checkpoint: Path, expected: Matrix, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of another fit stays whole, though it is of no use: nothing partial has a final name."""
    path = tmp_path / "tiny-1-cpu.safetensors"
    path.write_bytes(b"of another fit")
    with caplog.at_level(logging.WARNING), quota(64_000):
        answers = start(checkpoint, tmp_path)
    np.testing.assert_array_equal(answers, expected)
    assert "is not written" in caplog.text
    assert "File too large" in caplog.text
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {path.name: b"of another fit"}


def test_a_start_amid_anothers_write_disturbs_neither(
    checkpoint: Path,
    expected: Matrix,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The second start runs from the first to the last line while the first has its file half written."""
    seen: list[Any] = []

    def half_way(*arguments: Any) -> None:
        monkeypatch.setattr(kv_file, "write_tensors", write_tensors)
        write_tensors(*arguments)
        seen.append([entry.name for entry in tmp_path.iterdir()])
        seen.append(start(checkpoint, tmp_path))

    monkeypatch.setattr(kv_file, "write_tensors", half_way)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(start(checkpoint, tmp_path), expected)
    assert caplog.records == [], "the first file was taken away while it was written"
    (unfinished,), answers = seen
    assert unfinished.startswith(".tiny-1-cpu.safetensors.")
    np.testing.assert_array_equal(answers, expected)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny-1-cpu.safetensors"]


def test_what_killed_starts_left_is_swept_at_the_next(
    checkpoint: Path, expected: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the next start reads a good file and writes none, and where another model was being written."""
    left: list[Path] = []

    def killed(file: Any, *arguments: Any) -> None:
        write_tensors(file, *arguments)
        left.append(Path(file.name))

    monkeypatch.setattr(kv_file, "write_tensors", killed)
    start(checkpoint, tmp_path)
    left.append(left[0].with_name(left[0].name.replace("tiny-1", "fraud-7")))
    for path in left:
        path.write_bytes(b"half")
    (tmp_path / ".mine.part").touch()  # no name of ours
    np.testing.assert_array_equal(start(checkpoint, tmp_path), expected)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".mine.part", "tiny-1-cpu.safetensors"]


def test_caches_forged_with_right_digests_end_the_start_in_a_line(checkpoint: Path, tmp_path: Path) -> None:
    """No digest can tell. The comparison with tabpfn without a KV cache does."""
    start(checkpoint, tmp_path)
    (path,) = tmp_path.iterdir()
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    body = json.loads(metadata["body"])
    for name, tensor in tensors.items():
        if name.endswith((".key", ".value")):
            tensors[name] = tensor + 0.05
            body["tensors"][name][2] = kv_file._digest(bytes_of(tensors[name]))
    metadata["body"] = json.dumps(body)
    metadata["body_sha256"] = kv_file._digest(metadata["body"])
    with path.open("wb") as forged:
        write_tensors(forged, tensors, metadata)
    with pytest.raises(StartupError, match="batched and uncached differ by") as refusal:
        start_checked(checkpoint, tmp_path)
    assert "\n" not in str(refusal.value)
