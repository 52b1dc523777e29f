"""The worker: one engine that answers calls from a socket.

`python -m serve.engine.worker.server FD LOG_LEVEL ROWS_FD`, with the connection and the file of the shared rows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import TypeAlias

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
from serve.engine.worker.shared_rows import SharedRows
from serve.settings import EngineSettings
from serve.telemetry.launcher_log import write_to_launcher

_log = logging.getLogger("serve.engine.worker.server")  # this module is `__main__` where it runs

_NICENESS = 5
"""How far this process yields to the one that reads requests: to a quarter of a core that both want.

Reading a request takes a tenth of a millisecond, and its caller and the next batch wait for it; a batch takes tens of
milliseconds. If the scheduler treated both alike, reading would wait for the engine's time slices, and under overload
so would the refusals. Where a core is free the niceness costs nothing, so a thread that feeds a GPU runs as before.
"""

_LOST_EXIT_CODE = 70
"""How the process ends whose device is lost: EX_SOFTWARE of sysexits.h."""

MakeEngine = Callable[[EngineSettings, int], Engine]
Answer: TypeAlias = tuple[Message, Matrix | None]


def run(make_engine: MakeEngine) -> None:
    """Answer calls until the replica's end of the connection closes."""
    os.nice(_NICENESS)  # before there are threads, which inherit it
    fd, level, rows_fd = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    write_to_launcher(os.environ)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    os.set_inheritable(fd, False)  # a process that the engine starts must not hold the connection open
    connection = socket.socket(fileno=fd)
    shared = SharedRows(rows_fd)
    os.close(rows_fd)
    watch = _end_with(connection)
    with contextlib.suppress(EOFError, ConnectionError):
        _Service(connection, shared, make_engine).serve()
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
    """Answers every call by its result or its error, in the order of the calls.

    Where the engine allows a second batch in flight, a thread of its own collects and answers the batches, so that this
    one can prepare the next. No other call comes while a batch is in flight, so only one thread sends at a time.
    """

    def __init__(self, connection: socket.socket, shared: SharedRows, make_engine: MakeEngine) -> None:
        self._connection = connection
        self._shared = shared
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._contexts: list[FittedContext] = []
        self._is_pipelined = False
        self._launched: SimpleQueue[Callable[[], Answer] | Failure] = SimpleQueue()

    def serve(self) -> None:
        while True:
            call, rows = wire.receive(
                self._connection, wire.CALL, max_header_bytes=wire.MAX_HEADER_BYTES, max_body_bytes=sys.maxsize
            )
            if isinstance(call, Predict) and self._is_pipelined:
                self._launched.put(self._launch(call, rows))
            else:
                self._send(partial(self._answer, call, rows))

    def _answer(self, call: Call, rows: Matrix) -> Answer:
        if isinstance(call, Start):
            return self._start(call), None
        assert self._engine is not None, "this is a bug: the first call is Start"
        match call:
            case Fit():
                self._contexts.append(self._engine.fit(call.model))
                return describe_context(len(self._contexts) - 1, self._contexts[-1])
            case Predict():
                outputs = self._engine.predict(self._batch(call, rows))
            case Reference():
                outputs = self._engine.reference(Batch(self._contexts[call.context], rows))
        return _answered(self._contexts[call.context], outputs)

    def _start(self, call: Start) -> Started:
        settings = EngineSettings.model_validate_json(call.settings)
        self._engine = self._make_engine(settings, call.max_batch_rows)
        self._is_pipelined = self._engine.max_in_flight > 1
        if self._is_pipelined:
            threading.Thread(target=self._collect, name="collect", daemon=True).start()
        return Started(self._engine.max_in_flight)

    def _batch(self, call: Predict, rows: Matrix) -> Batch:
        if call.shared is not None:
            rows = self._shared.slot(call.shared.number, call.shared.shape)
        return Batch(self._contexts[call.context], rows)

    def _launch(self, call: Predict, rows: Matrix) -> Callable[[], Answer] | Failure:
        """What waits for the answer to a launched batch; or why the batch could not be launched."""
        assert self._engine is not None, "this is a bug: the first call is Start"
        started_at = time.perf_counter()
        try:
            launched = self._engine.launch(self._batch(call, rows))
        except BaseException as error:
            return _failure(error)
        prepared_s = time.perf_counter() - started_at
        return lambda: _answered(self._contexts[call.context], launched.collect(), prepared_s)

    def _collect(self) -> None:
        """Answer the launched batches one by one, until the replica hangs up."""
        with contextlib.suppress(ConnectionError):
            while True:
                self._send_answer_of(self._launched.get())

    def _send_answer_of(self, launched: Callable[[], Answer] | Failure) -> None:
        if isinstance(launched, Failure):
            self._connection.sendall(wire.encode(launched))
        else:
            self._send(launched)

    def _send(self, answer: Callable[[], Answer]) -> None:
        """Send an answer; if it raises an error, that."""
        try:
            frame = wire.encode(*answer())
        except BaseException as error:
            frame = wire.encode(_failure(error))
        self._connection.sendall(frame)


def _answered(context: FittedContext, outputs: Matrix, prepared_s: float = 0.0) -> Answer:
    shape = (outputs.shape[0], outputs.shape[1])
    return Answered(shape, context.backend, prepared_s, time.monotonic()), outputs


def describe_context(number: int, context: FittedContext) -> tuple[Fitted, Matrix]:
    """What the replica needs of a fitted context, and the context's encoded rows: the message and its matrix."""
    rows = context.encode_context()
    encoder = getattr(context, "encoder", None)
    assert isinstance(encoder, RowEncoder), "this is a bug: a fitted context without its row encoder"
    codings = [describe_coding(coding) for coding in encoder.codings or ()]
    slack = None if context.canary_slack is None else context.canary_slack.tolist()
    return Fitted(number, context.classes, context.backend, codings, (rows.shape[0], rows.shape[1]), slack), rows


def _failure(error: BaseException) -> Failure:
    """An error of the server as itself, its cause in this process's log; any other as an EngineError of its text.

    A lost device ends this process.
    """
    if isinstance(error, DeviceLost):
        _log.critical("this process ends, because its device is lost", exc_info=error)
        os._exit(_LOST_EXIT_CODE)  # without what Python and CUDA do at exit, which may hang now
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
