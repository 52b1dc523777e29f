"""What a replica under Ray and its engine's worker log, written to the launcher too (`edges/ray/replica_log.py`).

The launcher names a pipe in the environment. Ray's processes inherit it, and a worker inherits it from its replica.

A line is one write of at most `PIPE_BUF` bytes, so lines of several processes never mix. No process waits for the pipe:
where it is full, or where its reader is gone, the line is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping

LOG_PIPE = "TABPFN_REPLICA_LOG"
"""Variable with `LEVEL:PATH` of the pipe."""
REPLICA_NAME = "TABPFN_REPLICA_NAME"
"""Variable with the name of the replica, which each line states. The replica sets it for its worker."""

PACKAGE = "serve"
"""The logger whose records are written: that of this package, not Ray's."""

_MAX_LINE_BYTES = 4096


def write_to_launcher(variables: Mapping[str, str]) -> None:
    """Add the launcher's pipe to the loggers of this process, where `variables` name one."""
    level, _, path = variables.get(LOG_PIPE, "").partition(":")
    if not path:
        return
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # the launcher is gone, and Ray ends this process too
    handler = _PipeHandler(pipe)
    source = f"(replica {variables.get(REPLICA_NAME, 'unknown')})"
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s %(name)s {source}: %(message)s"))
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
