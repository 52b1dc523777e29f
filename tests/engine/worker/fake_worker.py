"""A worker of `WorkerEngine` with FakeEngine in it. The first cell of a batch may name a fault.

With the argument `two` it has two batches in flight. With the argument `slow-end` its last call of the system takes
half a second, so that a second thread which ends the process too is seen. With the argument `parent` this program is
the replica of such a worker: it prints the worker's process id, and then makes a call that hangs.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from functools import partial

import numpy as np

from serve.core import Batch, Column, ColumnKind, Context, Launched, ModelDefinition, Task
from serve.core.errors import DeviceLost, OutOfMemory, StartupError
from serve.engine.fake import FakeEngine
from serve.engine.worker.client import WorkerEngine
from serve.engine.worker.server import run
from serve.settings import EngineSettings

NO_MEMORY, UNEXPECTED, EXITS, KILLED, HANGS, LOST, NOT_RECORDED = (-float(number) for number in range(1, 8))
WAITS, KILLED_LATE, LOST_LATE, RELEASES = (-float(number) for number in range(8, 12))
"""The first three end, by an answer or with the process, once a batch of the last kind was launched behind them."""
UNLAUNCHED, KILLED_EARLY, LOST_EARLY = (-float(number) for number in range(12, 15))
"""Faults of the launch."""
PREPARED_SLOWLY, PREPARATION_S = -15.0, 0.05
"""A batch whose launch takes that long."""
REFUSED_ROWS = 13
WORKER = (__file__,)
TWO_IN_FLIGHT = (*WORKER, "two")

_released = threading.Event()


def fail(batch: Batch) -> None:
    """The fault that the batch names, if any."""
    if batch.rows[0, 0] in (WAITS, KILLED_LATE, LOST_LATE):
        assert _released.wait(30), "no batch was launched behind it"
        _released.clear()
    match batch.rows[0, 0]:
        case -1.0:
            raise OutOfMemory("no memory for 3 rows")
        case -2.0:
            raise LookupError("something of a package's")
        case -3.0:
            os._exit(7)
        case -4.0 | -9.0:
            os.kill(os.getpid(), signal.SIGKILL)
        case -5.0:
            threading.Event().wait()
        case -6.0 | -10.0:
            raise DeviceLost("cuda:0 is lost")
        case -7.0:
            object.__setattr__(batch.context, "backend", "compiled, not recorded")


class LaunchingEngine(FakeEngine):
    """FakeEngine whose launches may be named, too."""

    def launch(self, batch: Batch) -> Launched:
        match batch.rows[0, 0]:
            case -11.0:
                _released.set()
            case -12.0:
                raise OutOfMemory("no memory to prepare it")
            case -13.0:
                os.kill(os.getpid(), signal.SIGKILL)
            case -14.0:
                raise DeviceLost("cuda:0 is lost")
            case -15.0:
                time.sleep(PREPARATION_S)
        return super().launch(batch)


def make_engine(max_in_flight: int, _: EngineSettings, max_batch_rows: int) -> FakeEngine:
    if max_batch_rows == REFUSED_ROWS:
        raise StartupError("not with thirteen")
    return LaunchingEngine(gate=fail, max_in_flight=max_in_flight)


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


def end_slowly() -> None:
    """Say on stderr when Python's exit handlers run, and leave them the time to."""
    end, have_run = os._exit, threading.Event()

    def end_late(code: int) -> None:
        have_run.wait(0.5)
        end(code)

    def handler() -> None:
        print("exit handlers ran", file=sys.stderr, flush=True)
        have_run.set()

    os._exit = end_late
    atexit.register(handler)


if __name__ == "__main__":
    if sys.argv[1] == "slow-end":
        del sys.argv[1]
        end_slowly()
    max_in_flight = 1
    if sys.argv[1] == "two":
        del sys.argv[1]
        max_in_flight = 2
    be_a_parent() if sys.argv[1] == "parent" else run(partial(make_engine, max_in_flight))
