"""Files that several processes share: a lock, and a write that leaves a whole file or none.

What is always true:
- a file or folder written by `atomic_write` has its own name only once all of its bytes are on the disk;
- a process that is killed while it holds a `lock_for` loses the lock, because the operating system takes it back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


def lock_for(path: Path) -> FileLock:
    """A lock between processes, as a context manager. Entering it waits until the lock is free.

    The lock is the file `NAME.lock` beside `path`; the file stays when the lock is released.

    Raises:
        OSError: on entry, if the lock file cannot be made.
    """
    return FileLock(path.with_name(f"{path.name}.lock"))


@contextlib.contextmanager
def atomic_write(path: Path, *, aside: Path | None = None, is_folder: bool = False) -> Iterator[Path]:
    """Make a file or a folder appear at `path` whole, or not at all.

    The context manager yields an empty file (mode 0600) or folder (mode 0700) under another name. On a normal end it
    is synced to the disk and renamed to `path`, in place of what was there. On an exception it is removed.

    Args:
        aside: the other name, on the same file system as `path`. What a killed process left there is removed first, so
            a caller that passes this argument holds a lock. By default a new name beside `path`, which needs no lock.
        is_folder: yield a folder instead of a file.

    Raises:
        OSError: `path` or `aside` cannot be written.
    """
    aside = aside or path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    aside.parent.mkdir(parents=True, exist_ok=True)
    _remove(aside)
    try:
        if is_folder:
            aside.mkdir(mode=0o700)
        else:
            aside.touch(mode=0o600, exist_ok=False)
        yield aside
        _sync(aside)
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(aside, path)
        _sync_one(path.parent)
    finally:
        _remove(aside)


def _put(aside: Path, path: Path) -> None:
    if not (aside.is_dir() and path.is_dir()):
        aside.replace(path)
        return
    old = aside.with_name(f"{aside.name}.old")  # a rename replaces a file, but not a folder that holds files
    _remove(old)
    path.rename(old)
    aside.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Write a file, or a folder and all in it, through to the disk: a name must not outlive the bytes."""
    for entry in path.rglob("*"):
        _sync_one(entry)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
