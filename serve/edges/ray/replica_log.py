"""The log of the replicas on the launcher's standard error, as `tabpfn-serve up` has it on its own.

Ray writes the output of a replica to files. So the launcher opens a named pipe in a private folder and copies its
lines. Each replica and each worker writes its log to that pipe (`telemetry/launcher_log.py`). Ray's processes inherit
the environment of the launcher, and with it the pipe's path and the log level; a replica that Ray starts later finds
the same pipe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from serve.telemetry.launcher_log import LOG_PIPE, PACKAGE

_END = b"\0\n"


@contextlib.contextmanager
def forwarding() -> Iterator[Mapping[str, str]]:
    """Copy what replicas log to this process's standard error. Yields what their environment must hold."""
    with tempfile.TemporaryDirectory(prefix="tabpfn-serve-log-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "log")
        os.mkfifo(path, 0o600)
        pipe = os.open(path, os.O_RDWR)  # both ends, so that it stays open while no replica runs
        thread = threading.Thread(target=_copy, args=(pipe,), name="replica-log", daemon=True)
        thread.start()
        level = logging.getLogger(PACKAGE).getEffectiveLevel()
        try:
            yield {LOG_PIPE: f"{level}:{path}"}
        finally:
            os.write(pipe, _END)
            thread.join()
            os.close(pipe)


def _copy(pipe: int) -> None:
    with open(pipe, "rb", closefd=False) as lines:
        for line in iter(lines.readline, _END):
            sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()
