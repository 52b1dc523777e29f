"""Files that several processes share: a lock, and a write that leaves a whole file or none.

What is always true:
- a file or folder written by `atomic_write` has its own name only once all of its bytes are on the disk;
- a process that is killed while it holds a `lock_for` loses the lock, because the operating system takes it back;
- an unfinished file beside its own name is locked while its writer lives. What a killed writer left has no lock, and
  `sweep` removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.part")


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
            a caller that passes this argument holds a lock. By default a new name beside `path`, which needs no lock;
            `sweep` removes what a killed process left there.
        is_folder: yield a folder instead of a file.

    Raises:
        OSError: `path` or `aside` cannot be written.
    """
    aside = aside or path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    aside.parent.mkdir(parents=True, exist_ok=True)
    _remove(aside)
    handle = None
    try:
        handle = _make(aside, is_folder=is_folder)
        yield aside
        _sync(aside)
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(aside, path)
        _sync_one(path.parent)
    finally:
        try:
            _remove(aside)
        finally:
            if handle is not None:
                os.close(handle)


def sweep(folder: Path) -> list[Path]:
    """Remove the unfinished files and folders that killed writers left in a folder; return their paths.

    What a living process writes stays, in this process and in others. What cannot be removed stays, without an error.
    """
    try:
        unfinished = [entry for entry in folder.iterdir() if _UNFINISHED.fullmatch(entry.name)]
    except OSError:  # no folder, or one that may not be read
        return []
    removed = []
    for entry in unfinished:
        with contextlib.suppress(OSError):
            handle = _open(entry)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(entry)
            finally:
                os.close(handle)
            removed.append(entry)
    return removed


def _make(aside: Path, *, is_folder: bool) -> int:
    """Make the file or folder and lock it; return the handle that holds the lock."""
    while True:
        if is_folder:
            aside.mkdir(mode=0o700)
        else:
            aside.touch(mode=0o600, exist_ok=False)
        try:
            handle = _open(aside)
        except FileNotFoundError:  # a sweep came before the lock
            continue
        with contextlib.suppress(OSError):  # a file system without locks, where a sweep removes nothing either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if aside.exists():
            return handle
        os.close(handle)


def _open(path: Path) -> int:
    # NFS locks a file only for one who may write it
    return os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)


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
