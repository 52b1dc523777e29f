"""The worker: one engine, asked through a socket. `python -m serve.engine.worker.server FD LOG_LEVEL`."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from serve.core import Batch, Engine, FittedContext, Matrix, ModelDefinition
from serve.core.errors import EngineError, ServeError
from serve.engine.worker.client import ContextHandle, adopt
from serve.settings import EngineSettings

_log = logging.getLogger(__name__)

_NICENESS = 5
"""How far this process steps back for the one that reads requests: to a quarter of a core that both want.

A request is read in a tenth of a millisecond, and its caller and the next batch wait for that; a batch takes tens of
them. Were both alike to the scheduler, the reading would wait for the engine's time slices, and under overload the
refusals most of all. Where a core is free it costs nothing, so a thread that feeds a GPU runs as ever.
"""

MakeEngine = Callable[[EngineSettings, int], Engine]


def run(make_engine: MakeEngine) -> None:
    """Answer calls; ends with the parent's end of the pair."""
    os.nice(_NICENESS)  # before there are threads, which inherit it
    fd, level = int(sys.argv[1]), sys.argv[2]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    pipe = adopt(fd)
    _end_with(pipe)
    with contextlib.suppress(EOFError, ConnectionError):
        _Service(make_engine).serve(pipe)


def _end_with(pipe: Connection) -> None:
    """End this process when the parent's end closes, be it in the middle of a long call or not.

    A parent that was killed must not leave a device in use, and the system takes back all that the engine holds.
    """

    def watch() -> None:
        hang_up = select.poll()
        hang_up.register(pipe.fileno(), 0)
        hang_up.poll()
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


class _Service:
    """Calls by name, each with its answer or its error."""

    def __init__(self, make_engine: MakeEngine) -> None:
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._contexts: list[FittedContext] = []

    def serve(self, pipe: Connection) -> None:
        while True:
            name, arguments = pickle.loads(pipe.recv_bytes())
            try:
                answer: tuple[Any, BaseException | None] = (getattr(self, name)(*arguments), None)
            except BaseException as error:
                answer = (None, _portable(error))
            pipe.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))

    def start(self, settings: EngineSettings, max_batch_rows: int) -> None:
        self._engine = self._make_engine(settings, max_batch_rows)

    def fit(self, model: ModelDefinition) -> ContextHandle:
        assert self._engine is not None
        context = self._engine.fit(model)
        self._contexts.append(context)
        return ContextHandle(
            len(self._contexts) - 1, context.classes, context.num_outputs, context.columns, context.backend,
            context.encode_context(), getattr(context, "encoder", context),
        )  # fmt: skip

    def predict(self, number: int, rows: Matrix) -> Matrix:
        assert self._engine is not None
        return self._engine.predict(Batch(self._contexts[number], rows))

    def reference(self, number: int, rows: Matrix) -> Matrix:
        assert self._engine is not None
        return self._engine.reference(Batch(self._contexts[number], rows))


def _portable(error: BaseException) -> BaseException:
    """The error itself if it is one of ours and crosses whole; else its words, the rest in the log of this process."""
    if isinstance(error, ServeError):
        if error.__cause__ is not None:
            _log.info("the cause of what follows", exc_info=error.__cause__)
        try:
            again = pickle.loads(pickle.dumps(error))
        except Exception:
            return EngineError(str(error))
        return error if str(again) == str(error) else EngineError(str(error))
    _log.error("a call of the engine failed:\n%s", "".join(traceback.format_exception(error)))
    return EngineError(f"{type(error).__name__}: {error}")


def _tabpfn_engine(settings: EngineSettings, max_batch_rows: int) -> Engine:
    from serve.engine.engine import TabPFNEngine

    return TabPFNEngine(settings, max_batch_rows)


if __name__ == "__main__":
    run(_tabpfn_engine)
