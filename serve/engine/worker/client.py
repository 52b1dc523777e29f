"""WorkerEngine: the Engine protocol, with the engine in a worker process.

Theory of operation
-------------------
Python runs one thread at a time. If the event loop reads requests while the device thread launches the hundred small
operations of a forward pass, each waits for the other: twelve rows of the demo model took 20 ms in place of 11. So the
engine lives in a worker process, and only matrices cross: a batch to the worker, its outputs back. They go through one
pair of sockets, and the rows of large batches through shared memory (`shared_rows.py`). The replica's threads wait for
the worker without Python's lock.

A call is sent by `launch` and its answer is read by `collect`. The worker's engine says how many calls may be sent and
not answered. With two, the worker prepares a batch while the device computes the batch before it.

The worker (`server.py`) is a fresh interpreter, never a fork, so it inherits no lock in mid-use. Only the worker loads
torch. It ends when the replica's end of the pair closes, for whatever reason. It ignores SIGTERM and SIGINT, because a
replica that drains still needs its answers.

A worker that ends (a lost GPU, a crash in native code, the kernel's out-of-memory killer) fails the batches in flight
with DeviceLost, and every later call. Its fitted contexts are gone, so the replica has to be replaced. The same holds
for a worker that sends a malformed frame, which is killed: the worker opens operators' pickles, so its answers are read
as data that may be hostile (`wire.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from serve.core import REGRESSION_STATISTICS, Batch, Column, FittedContext, Matrix, ModelDefinition, QueryTable
from serve.core.errors import DeviceLost
from serve.engine.coding import feature_names
from serve.engine.row_encoder import RowEncoder
from serve.engine.worker import wire
from serve.engine.worker.fit_call import fit_frame
from serve.engine.worker.messages import (
    Failed,
    FailedInput,
    FailedOverload,
    Failure,
    Fitted,
    Predict,
    Reference,
    SharedSlot,
    Start,
    restore_coding,
    restore_error,
)
from serve.engine.worker.shared_rows import MIN_BYTES, SLOT_BYTES, SharedRows
from serve.settings import EngineSettings

_WORKER = ("-m", "serve.engine.worker.server")
_END_TIMEOUT_S = 10.0
"""How long a worker may take to end before it is killed."""
_MIN_CONTEXT_ROWS = 1_024
"""Rows that any fitted context may show. An imported estimator shows synthetic rows, more than its model may have."""

M = TypeVar("M")


@dataclass(eq=False, slots=True)
class ContextHandle:
    """A fitted context of the worker, by its number, with what the replica needs to read requests.

    `backend` is what the worker said of it last.
    """

    number: int
    classes: tuple[str, ...]
    columns: tuple[Column, ...]
    backend: str
    rows: Matrix
    encoder: RowEncoder
    canary_slack: Matrix | None

    @property
    def num_outputs(self) -> int:
        return len(self.classes) or len(REGRESSION_STATISTICS)

    def encode_context(self) -> Matrix:
        return self.rows

    def encode(self, table: QueryTable) -> Matrix:
        return self.encoder.encode(table)


@dataclass(eq=False, slots=True)
class _Sent:
    """A batch in flight: its answer is the next one, once those sent before it have been received.

    Attributes:
        prepared_s, ended_at: see `Launched`.
    """

    engine: WorkerEngine
    context: ContextHandle
    max_body_bytes: int
    launched_at: float
    sent_at: float
    prepared_s: float | None = None
    ended_at: float | None = None

    def collect(self) -> Matrix:
        return self.engine._collect(self)


class WorkerEngine:
    """An Engine in a worker process. Like every engine, it is called from one thread at a time, `collect` apart."""

    def __init__(self, settings: EngineSettings, max_batch_rows: int, worker: Sequence[str] = _WORKER) -> None:
        """Start the worker and make its engine.

        Args:
            worker: arguments of Python that run `server.run`; tests name their own.

        Raises:
            StartupError: the worker's engine cannot be made, such as for a GPU that is not there.
            DeviceLost: the worker ended, or answered with a malformed frame.
        """
        self._device = settings.device
        self._in_flight: deque[_Sent] = deque()
        self._num_launched = 0
        self._is_trusted = True
        self._connection, self._process, self._shared = _start(worker)
        try:
            frame = wire.encode(Start(settings.model_dump_json(), max_batch_rows))
            self._max_in_flight = self._call(frame, wire.STARTED, 0)[0].max_in_flight
        except BaseException:  # also a signal that stops the replica meanwhile
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
        """The worker's process id."""
        return self._process.pid

    @property
    def max_in_flight(self) -> int:
        return self._max_in_flight

    @property
    def answer_fd(self) -> int:
        """The worker writes an answer whole, so one that can be read is there in microseconds."""
        return self._connection.fileno()

    def fit(self, model: ModelDefinition) -> ContextHandle:
        context = model.context
        max_rows = max(context.num_rows, _MIN_CONTEXT_ROWS)
        max_body_bytes = 8 * max_rows * len(feature_names(context.columns))
        fitted, rows = self._call(fit_frame(model), wire.FITTED, max_body_bytes)
        try:
            return make_handle(fitted, context.columns, rows)
        except ValueError as error:
            raise self._lose(f"described its fitted context wrongly: {error}") from error

    def launch(self, batch: Batch) -> _Sent:
        """Send the rows. Raises DeviceLost; every other error of the batch is raised by `collect`."""
        launched_at = time.perf_counter()
        assert len(self._in_flight) < self._max_in_flight, "this is a bug: too many batches are in flight"
        context, rows = _own(batch.context), batch.rows
        shape = (rows.shape[0], rows.shape[1])
        if MIN_BYTES <= rows.nbytes <= SLOT_BYTES:
            number = self._num_launched % self._max_in_flight  # free: as many calls later its batch was collected
            self._shared.slot(number, shape)[:] = rows
            frame = wire.encode(Predict(context.number, (0, 0), SharedSlot(number, shape)))
        else:
            frame = wire.encode(Predict(context.number, shape), rows)
        self._send(frame)
        bytes_due = 8 * len(rows) * context.num_outputs
        sent = _Sent(self, context, bytes_due, launched_at, time.perf_counter())
        self._in_flight.append(sent)
        self._num_launched += 1
        return sent

    def predict(self, batch: Batch) -> Matrix:
        return self.launch(batch).collect()

    def reference(self, batch: Batch) -> Matrix:
        context, rows = _own(batch.context), batch.rows
        frame = wire.encode(Reference(context.number, (rows.shape[0], rows.shape[1])), rows)
        return self._call(frame, wire.ANSWERED, 8 * len(rows) * context.num_outputs)[1]

    def close(self) -> None:
        """End the worker; kill it if it does not end in time."""
        self._connection.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _collect(self, sent: _Sent) -> Matrix:
        assert sent in self._in_flight, "this is a bug: a batch is collected once"
        assert sent is self._in_flight[0], "this is a bug: batches are collected in the order of their launches"
        try:
            answered, outputs = self._receive(wire.ANSWERED, sent.max_body_bytes)
        finally:
            self._in_flight.popleft()
        sent.context.backend = answered.backend or sent.context.backend
        # no more than has passed, whatever a hostile worker says
        prepared_s = min(answered.prepared_s, time.perf_counter() - sent.sent_at)
        sent.prepared_s = sent.sent_at - sent.launched_at + prepared_s
        now = time.monotonic()
        sent.ended_at = min(max(answered.ended_at, now - (time.perf_counter() - sent.sent_at)), now)
        return outputs

    def _call(self, frame: bytes, decoder: wire.Decoder[M | Failure], max_body_bytes: int) -> tuple[M, Matrix]:
        """Send a call while nothing is in flight, and receive its answer."""
        assert not self._in_flight, "this is a bug: a batch is in flight"
        self._send(frame)
        return self._receive(decoder, max_body_bytes)

    def _send(self, frame: bytes) -> None:
        try:
            self._connection.sendall(frame)
        except OSError as broken:
            raise self._ended() from broken

    def _receive(self, decoder: wire.Decoder[M | Failure], max_body_bytes: int) -> tuple[M, Matrix]:
        """The worker's next answer; the error that the call raised there is raised here."""
        if not self._is_trusted:  # what it sent before it was killed could still be read
            raise self._ended()
        try:
            max_header_bytes = wire.MAX_ANSWER_HEADER_BYTES
            answer, matrix = wire.receive(
                self._connection, decoder, max_header_bytes=max_header_bytes, max_body_bytes=max_body_bytes
            )
        except (EOFError, OSError) as broken:
            raise self._ended() from broken
        except wire.MalformedFrame as error:
            raise self._lose(f"sent a malformed frame: {error}") from error
        if isinstance(answer, Failed | FailedInput | FailedOverload):
            raise restore_error(answer)
        return answer, matrix

    def _ended(self) -> DeviceLost:
        """The error of a worker that hung up, with how it ended."""
        try:
            code = self._process.wait(_END_TIMEOUT_S)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            how = "it closed its connection and was killed"
        return DeviceLost(f"the engine's worker process {self.pid} ended ({how})")

    def _lose(self, reason: str) -> DeviceLost:
        """Kill the worker and hang up, because nothing that it may still send can be believed."""
        self._is_trusted = False
        self._process.kill()
        with contextlib.suppress(OSError):  # it may have hung up already
            self._connection.shutdown(socket.SHUT_RDWR)  # not closed: another thread may be sending a batch
        self._process.wait()
        return DeviceLost(f"the engine's worker process {self.pid} {reason}; it was killed")


def _start(worker: Sequence[str]) -> tuple[socket.socket, subprocess.Popen[bytes], SharedRows]:
    """A worker process, this end of the connection to it, and the memory shared with it."""
    here, there = socket.socketpair()
    rows_fd = SharedRows.make_file()
    fds = (there.fileno(), rows_fd)
    try:
        level = logging.getLevelName(logging.root.level)
        command = [sys.executable, *worker, str(fds[0]), level, str(fds[1])]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds)
        return here, process, SharedRows(rows_fd)
    finally:
        there.close()
        os.close(rows_fd)


def _own(context: FittedContext) -> ContextHandle:
    assert isinstance(context, ContextHandle), "this is a bug: a context of another engine"
    return context


def make_handle(fitted: Fitted, columns: tuple[Column, ...], rows: Matrix) -> ContextHandle:
    """The handle of a context that the worker described. Raises ValueError where it does not fit the columns."""
    codings = [restore_coding(coding) for coding in fitted.codings]
    width = len(feature_names(columns))
    if len(codings) != width or rows.shape[1] != width:
        raise ValueError(f"{len(codings)} codings and rows of {rows.shape[1]} numbers for {width} features")
    encoder = RowEncoder(columns, codings)
    slack = None
    if fitted.canary_slack is not None:
        slack = np.array(fitted.canary_slack, dtype=np.float64)
        if slack.ndim != 2 or not slack.size:
            raise ValueError("its canary_slack is no matrix")
    return ContextHandle(fitted.context, fitted.classes, columns, fitted.backend, rows, encoder, slack)
