"""The log of the replicas on the launcher's standard error, as `tabpfn-serve up` has it on its own.

Ray writes the output of a replica to files. So the launcher opens a named pipe in a private folder and copies its
lines, and each replica writes its log to that pipe. Ray's processes inherit the environment of the launcher, and with
it the pipe's path and the log level; a replica that Ray starts later finds the same pipe.

A line is one write of at most `PIPE_BUF` bytes, so lines of several replicas never mix. A replica never waits for the
pipe: where it is full, or where its reader is gone, the line is dropped.
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

from serve.edges.ray import environment

_MAX_LINE_BYTES = 4096
_END = b"\0\n"

PACKAGE = "serve"
"""The logger whose records are forwarded: that of this package, not Ray's."""


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
            yield {environment.REPLICA_LOG: f"{level}:{path}"}
        finally:
            os.write(pipe, _END)
            thread.join()
            os.close(pipe)


def _copy(pipe: int) -> None:
    with open(pipe, "rb", closefd=False) as lines:
        for line in iter(lines.readline, _END):
            sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()


def write_to_launcher(variables: Mapping[str, str], replica: str) -> None:
    """Add the launcher's pipe to the loggers of this process, where `variables` name one."""
    level, _, path = variables.get(environment.REPLICA_LOG, "").partition(":")
    if not path:
        return
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return  # the launcher is gone, and Ray ends this process too
    handler = _PipeHandler(pipe)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s %(name)s (replica {replica}): %(message)s"))
    logger = logging.getLogger(PACKAGE)
    logger.addHandler(handler)
    logger.setLevel(int(level))


class _PipeHandler(logging.Handler):
    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            with contextlib.suppress(OSError):
                os.write(self._pipe, line.encode(errors="replace")[: _MAX_LINE_BYTES - 1] + b"\n")
