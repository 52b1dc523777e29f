"""The folder of downloaded files: `DIGEST/FILE`, where DIGEST is the SHA-256 of the file or of its manifest.

What is always true:
- a file has its own name only if its SHA-256 was the expected one. It is written as `FILE.part`, compared and renamed.
  The `.part` file of a killed process is written anew by the next process;
- a kept file is compared with its digest again before each use, and downloaded anew if it has changed;
- two processes that want the same file download it once: the second waits for the lock of the first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from serve.core.errors import InvalidModel, StartupError
from serve.core.files import atomic_write, lock_for
from serve.store.folder import sha256_of

_log = logging.getLogger(__name__)

Download = Callable[[BinaryIO], None]
"""Writes an object into an open file. Raises StartupError if the object cannot be downloaded."""


class Downloads:
    """Downloaded files below one folder, by default `tabpfn-serve` in the user's cache folder.

    Raises:
        StartupError: no folder is given and the user has no home folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or _default_folder()

    def get(self, path: PurePosixPath, sha256: str, download: Download, origin: str, pinned_by: str) -> Path:
        """Return a kept file, downloaded only if the folder does not hold it with this digest.

        Args:
            path: relative to the folder, without `..`.
            origin: the address of the file, for messages.
            pinned_by: the setting or manifest that states `sha256`, for messages.

        Raises:
            InvalidModel: the downloaded file has another digest.
            StartupError: the file cannot be downloaded or kept.
        """
        target = self.folder / path
        try:
            self._make()
            with lock_for(target):
                if not (target.exists() and sha256_of(target) == sha256):
                    self._download(target, sha256, download, origin, pinned_by)
                return target
        except OSError as error:
            raise StartupError(
                f"{origin} cannot be kept in {self.folder} (store.download_dir): {error.strerror or error}; "
                "make room there or name another folder"
            ) from error

    def folder_for(self, *path: str) -> Path:
        """Return the path of a folder for what is made of a downloaded file. The caller makes that folder.

        Raises:
            StartupError: the folder of downloads cannot be made.
        """
        try:
            self._make()
        except OSError as error:
            raise StartupError(
                f"{self.folder} (store.download_dir) cannot be used: {error.strerror}; name a writable folder"
            ) from error
        return self.folder.joinpath(*path)

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _download(self, target: Path, sha256: str, download: Download, origin: str, pinned_by: str) -> None:
        with atomic_write(target, aside=target.with_name(f"{target.name}.part")) as part:
            with part.open("wb") as file:
                download(file)
            digest = sha256_of(part)
            if digest != sha256:
                raise InvalidModel(
                    f"{origin} has sha256 {digest}, but {pinned_by} says {sha256}; "
                    "correct the digest, or put the right file there"
                )
        _log.info("downloaded %s to %s", origin, target)


def _default_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "tabpfn-serve"
    except RuntimeError as error:
        raise StartupError("this user has no home folder to keep downloads in; set store.download_dir") from error
