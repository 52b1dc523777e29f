"""A file or folder appears whole or not at all, and one process at a time holds a lock."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from serve.core import files
from serve.core.files import atomic_write, lock_for, sweep


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(path: Path, aside: Path, **files: str) -> None:
    with atomic_write(path, aside=aside, is_folder=True) as part:
        for name, text in files.items():
            (part / name).write_text(text)


def half_write(path: Path) -> None:
    path.write_text("half")
    raise ZeroDivisionError


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_write(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert contents(tmp_path) == {"new/file": "whole"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as part:
        half_write(part)
    assert contents(tmp_path) == {"file": "old"}
    with atomic_write(path) as part:
        part.write_text("new")
    assert contents(tmp_path) == {"file": "new"}


def test_a_folder_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    path = tmp_path / "model" / "1"
    write_folder(path, tmp_path / "aside", a="1", b="1")
    assert path.stat().st_mode & 0o777 == 0o700
    write_folder(path, tmp_path / "aside", a="2")
    assert contents(tmp_path) == {"model/1/a": "2"}


def test_a_failure_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", tmp_path / "aside", a="1")
    with (
        pytest.raises(ZeroDivisionError),
        atomic_write(tmp_path / "model", aside=tmp_path / "aside", is_folder=True) as part,
    ):
        half_write(part / "a")
    assert contents(tmp_path) == {"model/a": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("left_folder", [True, False])
def test_what_a_killed_process_left_aside_is_removed_first(tmp_path: Path, left_folder: bool) -> None:
    aside = tmp_path / "aside"
    if left_folder:
        aside.mkdir()
        (aside / "left").write_text("half")
    else:
        aside.symlink_to("/dev/full")
    write_folder(tmp_path / "model", aside, a="1")
    assert contents(tmp_path) == {"model/a": "1"}


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", tmp_path / "aside", a="1")
    with pytest.raises(OSError, match="model"), atomic_write(tmp_path / "model") as part:
        part.write_text("file")
    assert contents(tmp_path) == {"model/a": "1"}


def test_bytes_are_on_the_disk_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure a name must not stand for bytes that were never written."""
    original, synced = os.fsync, []

    def fsync(handle: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, (tmp_path / "model").exists()))
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_folder(tmp_path / "model", tmp_path / "aside", a="1")
    assert synced == [("a", False), ("aside", False), (tmp_path.name, True)]


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
from serve.core.files import lock_for
with lock_for(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    path = tmp_path / "file"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = lock_for(path)
        with pytest.raises(Timeout):
            lock.acquire(blocking=False)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=60)
    with lock_for(path).acquire(timeout=60):
        pass


KILLED = """
import os, pathlib, signal, sys
from serve.core.files import atomic_write
with atomic_write(pathlib.Path(sys.argv[1])) as part:
    part.write_text("half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("half", flush=True)
    sys.stdin.read()
"""


def write_in_child(path: Path, how: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", KILLED, str(path), how]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_sweep_removes_what_a_killed_writer_left_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_in_child(path, "killed").communicate(timeout=60)
    (left,) = tmp_path.iterdir()
    living = write_in_child(path, "lives")
    try:
        assert living.stdout is not None
        assert living.stdout.readline() == "half\n"
        (tmp_path / ".other.part").touch()
        with atomic_write(tmp_path / "mine") as part:
            assert sweep(tmp_path) == [left]
            part.write_text("whole")
    finally:
        living.communicate("", timeout=60)
    assert living.returncode == 0
    assert contents(tmp_path) == {"file": "half", "mine": "whole", ".other.part": ""}


def test_a_sweep_removes_a_folder_and_spares_what_a_link_names(tmp_path: Path) -> None:
    unique = "0" * 32
    folder = tmp_path / f".model.{unique}.part"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / f".link.{unique}.part").symlink_to(tmp_path / "kept")
    assert sweep(tmp_path) == [folder]
    assert contents(tmp_path)["kept"] == "kept"
    assert sweep(tmp_path / "absent") == []


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("moment", ["_open", "flock"])
def test_a_writer_whose_file_is_swept_before_it_holds_the_lock_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, is_folder: bool
) -> None:
    module: Any = {"_open": files, "flock": fcntl}[moment]
    original, swept = getattr(module, moment), []

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(module, moment, original)
        swept.extend(sweep(tmp_path))
        return original(*arguments)

    monkeypatch.setattr(module, moment, late)
    with atomic_write(tmp_path / "file", is_folder=is_folder) as part:
        assert len(swept) == 1
        assert sweep(tmp_path) == []
        assert part.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_write(tmp_path / "file") as part:
        assert sweep(tmp_path) == []
        part.write_text("whole")
    assert contents(tmp_path) == {"file": "whole"}
