"""EngineProcess: the Engine protocol, with the engine in a process of its own.

Theory of operation
-------------------
Python runs one thread at a time. Where callers' requests are read on the event loop while the device thread launches a
forward's hundred small operations, each waits for the other: twelve rows of the demo model took 20 ms that take 11
alone. So the engine lives in a child process and only matrices cross, through one pair of sockets: a batch there, its
outputs back. The device thread of the parent waits in between, without Python's lock.

The child (`process_main.py`) is a fresh interpreter, never a fork, so it meets no half-copied lock of its parent, and
it alone loads torch. It ends when the parent's end of the pair closes, whatever became of the parent. It ignores
SIGTERM and SIGINT: the parent drains, and the child has to answer until then.

A child that dies (a crash in native code, the kernel's out-of-memory killer) fails the batch on it with DeviceLost,
and every call after it: what was fitted is gone, the replica has to be replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from serve.core import Batch, Column, FittedContext, Matrix, ModelDefinition, QueryTable
from serve.core.errors import DeviceLost
from serve.settings import EngineSettings

_CHILD = ("-m", "serve.engine.worker.server")
_PATIENCE_S = 10.0
"""How long a child that was told to end may take before it is killed."""


class Encoder(Protocol):
    """Reads the cells of one request; see `FittedContext`."""

    def encode(self, table: QueryTable) -> Matrix: ...


@dataclass(frozen=True, eq=False, slots=True)
class ContextHandle:
    """What the parent needs of a fitted context: how to read a request. The rest stays in the child, by number."""

    number: int
    classes: tuple[str, ...]
    num_outputs: int
    columns: tuple[Column, ...]
    backend: str
    rows: Matrix
    encoder: Encoder

    def encode_context(self) -> Matrix:
        return self.rows

    def encode(self, table: QueryTable) -> Matrix:
        return self.encoder.encode(table)


class EngineProcess:
    """An Engine that runs elsewhere. As every engine, called from one thread at a time.

    Raises StartupError where the child's engine cannot be made, such as for a GPU that is not there.
    """

    def __init__(self, settings: EngineSettings, max_batch_rows: int, child: Sequence[str] = _CHILD) -> None:
        """`child`: arguments of Python that run `process_main.run`; another than ours is for tests."""
        self._device = settings.device
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, *child, str(there.fileno()), logging.getLevelName(logging.root.level)],
                stdin=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
            )
        self._pipe = Connection(here.detach())
        try:
            self._call("start", settings, max_batch_rows)
        except BaseException:  # the caller may also have been told to stop meanwhile
            self._process.kill()
            self.close()
            raise

    @property
    def device(self) -> str:
        return self._device

    @property
    def lost(self) -> bool:
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def fit(self, model: ModelDefinition) -> ContextHandle:
        front = self._call("fit", model)
        assert isinstance(front, ContextHandle)
        return front

    def predict(self, batch: Batch) -> Matrix:
        return self._call("predict", _number(batch.context), batch.rows)  # type: ignore[no-any-return]

    def reference(self, batch: Batch) -> Matrix:
        return self._call("reference", _number(batch.context), batch.rows)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the child; kill it if it does not."""
        self._pipe.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _call(self, name: str, *arguments: Any) -> Any:
        """The child's answer to one call; what the call raised there is raised here."""
        try:
            self._pipe.send_bytes(pickle.dumps((name, arguments), pickle.HIGHEST_PROTOCOL))
            answer, error = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as broken:
            raise DeviceLost(f"the engine's process {self._process.pid} ended ({self._end()})") from broken
        if error is not None:
            raise error
        return answer

    def _end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_PATIENCE_S)
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        return "it closed the connection"


def _number(context: FittedContext) -> int:
    assert isinstance(context, ContextHandle), "this is a bug: a context of another engine"
    return context.number


def adopt(fd: int) -> Connection:
    """The child's end of the pair, which nobody else must inherit."""
    os.set_inheritable(fd, False)
    return Connection(fd)
