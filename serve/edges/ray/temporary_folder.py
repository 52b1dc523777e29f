"""The folder for the sockets of Ray and HAProxy, whose paths must be short whatever `TMPDIR` says.

Linux limits the path of a unix socket to 107 bytes. Ray adds `/ray/session_2026-01-31_14-05-00_123456_1234567/sockets/
plasma_store`, 72 bytes. For HAProxy it adds the 56 digits of a node, and HAProxy adds `.1234567.tmp` while it starts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

from serve.core.errors import StartupError

MAX_BYTES = 20
"""Of the folder: leaves room for the names above."""

_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def short_temporary_folder(candidates: Sequence[str] | None = None) -> str:
    """The folder of temporary files, or another one where its path is too long. Raises StartupError."""
    folders = [tempfile.gettempdir(), *_SHORT] if candidates is None else candidates
    for folder in folders:
        if len(os.fsencode(folder)) <= MAX_BYTES and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise StartupError(
        f"Ray needs a folder for its sockets whose path has at most {MAX_BYTES} bytes, and none of these is one that "
        f"can be written: {', '.join(folders)}"
    )
