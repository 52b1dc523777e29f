"""The worker: one engine that answers calls from a socket. `python -m serve.engine.worker.server FD LOG_LEVEL`."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable

from serve.core import Batch, Engine, FittedContext, Matrix
from serve.core.errors import DeviceLost, EngineError, ServeError
from serve.engine.row_encoder import RowEncoder
from serve.engine.worker import wire
from serve.engine.worker.messages import (
    Answered,
    Call,
    Failure,
    Fit,
    Fitted,
    Message,
    Predict,
    Reference,
    Start,
    Started,
    describe_coding,
    describe_error,
)
from serve.settings import EngineSettings

_log = logging.getLogger(__name__)

_NICENESS = 5
"""How far this process yields to the one that reads requests: to a quarter of a core that both want.

Reading a request takes a tenth of a millisecond, and its caller and the next batch wait for it; a batch takes tens of
milliseconds. If the scheduler treated both alike, reading would wait for the engine's time slices, and under overload
so would the refusals. Where a core is free the niceness costs nothing, so a thread that feeds a GPU runs as before.
"""

_LOST_EXIT_CODE = 70
"""How the process ends whose device is lost: EX_SOFTWARE of sysexits.h."""

MakeEngine = Callable[[EngineSettings, int], Engine]


def run(make_engine: MakeEngine) -> None:
    """Answer calls until the replica's end of the connection closes."""
    os.nice(_NICENESS)  # before there are threads, which inherit it
    fd, level = int(sys.argv[1]), sys.argv[2]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    os.set_inheritable(fd, False)  # a process that the engine starts must not hold the connection open
    connection = socket.socket(fileno=fd)
    watch = _end_with(connection)
    with contextlib.suppress(EOFError, ConnectionError):
        _Service(make_engine).serve(connection)
    watch.join()  # one thread ends the process: two would run what Python does at exit at the same time


def _end_with(connection: socket.socket) -> threading.Thread:
    """A thread that ends this process when the replica's end closes, even in the middle of a long call.

    A replica that was killed must not leave a device in use; the system takes back everything that the engine holds.
    """

    def watch() -> None:
        hang_up = select.poll()
        hang_up.register(connection.fileno(), 0)
        hang_up.poll()
        os._exit(0)

    thread = threading.Thread(target=watch, name="replica-watch", daemon=True)
    thread.start()
    return thread


class _Service:
    """Answers every call by its result or its error."""

    def __init__(self, make_engine: MakeEngine) -> None:
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._contexts: list[FittedContext] = []

    def serve(self, connection: socket.socket) -> None:
        while True:
            call, rows = wire.receive(
                connection, wire.CALL, max_header_bytes=wire.MAX_HEADER_BYTES, max_body_bytes=sys.maxsize
            )
            try:
                frame = wire.encode(*self._answer(call, rows))
            except DeviceLost:
                _log.critical("this process ends, because its device is lost", exc_info=True)
                os._exit(_LOST_EXIT_CODE)  # without what Python and CUDA do at exit, which may hang now
            except BaseException as error:
                frame = wire.encode(_failure(error))
            connection.sendall(frame)

    def _answer(self, call: Call, rows: Matrix) -> tuple[Message, Matrix | None]:
        if isinstance(call, Start):
            settings = EngineSettings.model_validate_json(call.settings)
            self._engine = self._make_engine(settings, call.max_batch_rows)
            return Started(), None
        assert self._engine is not None, "this is a bug: the first call is Start"
        match call:
            case Fit():
                self._contexts.append(self._engine.fit(call.model))
                return describe_context(len(self._contexts) - 1, self._contexts[-1])
            case Predict():
                outputs = self._engine.predict(Batch(self._contexts[call.context], rows))
            case Reference():
                outputs = self._engine.reference(Batch(self._contexts[call.context], rows))
        backend = self._contexts[call.context].backend
        return Answered((outputs.shape[0], outputs.shape[1]), backend), outputs


def describe_context(number: int, context: FittedContext) -> tuple[Fitted, Matrix]:
    """What the replica needs of a fitted context, and the context's encoded rows: the message and its matrix."""
    rows = context.encode_context()
    encoder = getattr(context, "encoder", None)
    assert isinstance(encoder, RowEncoder), "this is a bug: a fitted context without its row encoder"
    codings = [describe_coding(coding) for coding in encoder.codings or ()]
    slack = None if context.canary_slack is None else context.canary_slack.tolist()
    return Fitted(number, context.classes, context.backend, codings, (rows.shape[0], rows.shape[1]), slack), rows


def _failure(error: BaseException) -> Failure:
    """An error of the server as itself, its cause in this process's log; any other as an EngineError of its text."""
    if isinstance(error, ServeError):
        if error.__cause__ is not None:
            _log.info("the cause of the error that follows", exc_info=error.__cause__)
        return describe_error(error)
    _log.error("a call of the engine failed:\n%s", "".join(traceback.format_exception(error)))
    return describe_error(EngineError(f"{type(error).__name__}: {error}"))


def _tabpfn_engine(settings: EngineSettings, max_batch_rows: int) -> Engine:
    from serve.engine.engine import TabPFNEngine

    return TabPFNEngine(settings, max_batch_rows)


if __name__ == "__main__":
    run(_tabpfn_engine)
