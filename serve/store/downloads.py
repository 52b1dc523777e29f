"""The folder that keeps what was downloaded: `DIGEST/FILE`, where the digest pins the file, or its manifest does.

What is always true:
- a file has its own name only once it is whole and its SHA-256 is the expected one: it is written beside it, compared,
  and renamed. A process that is killed leaves a `.part`, which the next one writes anew;
- a kept file is compared again before each use, and one that has changed is downloaded anew;
- two processes that want the same file do not both download it: the second waits for the first one's lock, which the
  system takes back from a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from serve.core.errors import InvalidModel, StartupError
from serve.store.folder import sha256_of

_log = logging.getLogger(__name__)

Download = Callable[[BinaryIO], None]
"""Writes a file. Raises StartupError."""


class Downloads:
    """The kept files below one folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or _default_folder()

    def get(self, path: PurePosixPath, sha256: str, download: Download, origin: str, pinned_by: str) -> Path:
        """A kept file of this digest, downloaded only where it is not there.

        Args:
            path: relative to the folder, without `..`.
            origin: where it comes from, for people.
            pinned_by: what says that `sha256` is right, for people.

        Raises:
            InvalidModel: what was downloaded has another digest.
            StartupError: it cannot be downloaded or kept.
        """
        target = self.folder / path
        try:
            self._make()
            with _locked(target):
                if target.exists() and sha256_of(target) == sha256:
                    return target
                self._download(target, sha256, download, origin, pinned_by)
                return target
        except OSError as error:
            raise StartupError(
                f"{origin} cannot be kept in {self.folder} (store.download_dir): {error.strerror or error}"
            ) from error

    def folder_for(self, *path: str) -> Path:
        """Where something may be kept that is made of a file, not downloaded. Raises StartupError."""
        try:
            self._make()
        except OSError as error:
            raise StartupError(f"{self.folder} (store.download_dir) cannot be used: {error.strerror}") from error
        return self.folder.joinpath(*path)

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _download(self, target: Path, sha256: str, download: Download, origin: str, pinned_by: str) -> None:
        part = target.with_name(f"{target.name}.part")
        try:
            with part.open("wb") as file:
                download(file)
                file.flush()
                os.fsync(file.fileno())  # a name must not outlive the bytes when the machine fails
            digest = sha256_of(part)
            if digest != sha256:
                raise InvalidModel(f"{origin} has sha256 {digest}, but {pinned_by} says {sha256}")
            part.replace(target)
            _log.info("%s is kept as %s", origin, target)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _default_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "tabpfn-serve"
    except RuntimeError as error:
        raise StartupError("this user has no home folder to keep downloads in; set store.download_dir") from error
