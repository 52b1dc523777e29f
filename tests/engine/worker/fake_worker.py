"""A worker of `WorkerEngine` with FakeEngine in it. The first cell of a batch may name a fault.

With the argument `parent` this program is the replica of such a worker: it prints the worker's process id, and then
makes a call that hangs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np

from serve.core import Batch, Column, ColumnKind, Context, ModelDefinition, Task
from serve.core.errors import OutOfMemory, StartupError
from serve.engine.fake import FakeEngine
from serve.engine.worker.client import WorkerEngine
from serve.engine.worker.server import run
from serve.settings import EngineSettings

NO_MEMORY, UNEXPECTED, EXITS, KILLED, HANGS = (-float(number) for number in range(1, 6))
REFUSED_ROWS = 13
WORKER = (__file__,)


def fail(batch: Batch) -> None:
    """The fault that the batch names, if any."""
    match batch.rows[0, 0]:
        case -1.0:
            raise OutOfMemory("no memory for 3 rows")
        case -2.0:
            raise LookupError("something of a package's")
        case -3.0:
            os._exit(7)
        case -4.0:
            os.kill(os.getpid(), signal.SIGKILL)
        case -5.0:
            threading.Event().wait()


def make_engine(_: EngineSettings, max_batch_rows: int) -> FakeEngine:
    if max_batch_rows == REFUSED_ROWS:
        raise StartupError("not with thirteen")
    return FakeEngine(gate=fail)


def numbers() -> ModelDefinition:
    """A model of two number columns, without a checkpoint."""
    columns = tuple(Column(name, ColumnKind.NUMBER) for name in ("a", "b"))
    cells = {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.5, None, 1.5, 2.0]}
    return ModelDefinition("m", "1", Context(Task.CLASSIFICATION, columns, cells, ["n", "y", "n", "y"]), "", "", "")


def be_a_parent() -> None:
    engine = WorkerEngine(EngineSettings(), 8, WORKER)
    context = engine.fit(numbers())
    print(engine.pid, flush=True)
    engine.predict(Batch(context, np.full((1, 2), HANGS)))


if __name__ == "__main__":
    be_a_parent() if sys.argv[1] == "parent" else run(make_engine)
