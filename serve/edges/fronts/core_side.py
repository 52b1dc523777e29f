"""The core's end of one front: admits its requests, sends back their outcomes, and counts what it reports.

Theory of operation
-------------------
The event loop hands over all frames that have come. Each request in them goes to the batcher with a callback. The
outcomes of one turn of the event loop leave in one frame, because a batch settles all its requests in one turn. So the
cost of frames is shared by many requests.

What is always true:
- each request of a front has one outcome, which is sent unless the front has withdrawn it;
- a front that is lost has all its requests withdrawn: their rows are not computed if they still wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np

from serve.batching import AdmittedRequest, Outcome
from serve.core import Matrix, ModelReference, Prediction, Priority
from serve.core.errors import EngineError, ServeError
from serve.edges.fronts.admission_board import Board
from serve.edges.fronts.channel import Channel
from serve.edges.fronts.forwarding import Answering
from serve.edges.fronts.frames import (
    Answer,
    Kind,
    MalformedFrame,
    answers_frame,
    read_part,
    read_submitted,
)
from serve.edges.fronts.messages import (
    FROM_FRONT,
    Closed,
    Failures,
    Forward,
    FromFront,
    Large,
    Listening,
    Message,
    Report,
    Withdrawn,
    message_frame,
    read_message,
)
from serve.engine.worker.messages import Failure, describe_error
from serve.replica.interface import ServedModel
from serve.replica.predictor import Predictor

_log = logging.getLogger(__name__)

_PRIORITIES = tuple(Priority)


class FrontRequest:
    """A request of a front, as the batcher reads it (`batching.Asked`)."""

    __slots__ = ("arrived_at", "deadline", "link", "model", "number", "priority")

    def __init__(
        self,
        link: FrontLink,
        number: int,
        model: ModelReference,
        arrived_at: float,
        deadline: float,
        priority: Priority,
    ) -> None:
        self.link = link
        self.number = number
        self.model = model
        self.arrived_at = arrived_at
        self.deadline = deadline
        self.priority = priority

    @property
    def request_id(self) -> str:
        """Only the front knows the caller's own."""
        return f"{self.link.name}/{self.number}"

    def conclude(self, outcome: Outcome) -> None:
        """The batcher's callback."""
        self.link.conclude(self.number, outcome)


class _Arriving:
    """A large request whose rows have not all come."""

    def __init__(self, large: Large, num_columns: int) -> None:
        self.large = large
        self.rows: Matrix = np.empty((large.num_rows, num_columns))
        self._rest = self.rows.data.cast("B")

    def take(self, part: memoryview) -> bool:
        """Take the next bytes; True when the rows are whole. Raises MalformedFrame."""
        if len(part) > len(self._rest):
            raise MalformedFrame("the parts of a request are longer than its rows")
        self._rest[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return not self._rest


class FrontLink:
    """See the head of the file. `attach` first. A `channel.Peer`.

    Attributes:
        name: of the front, for the log.
        is_listening: set when the front accepts connections.
        has_closed: set when it accepts no more, also because it is gone.
        is_lost: set when the front is gone.
        num_connections: of callers, as last reported.
        num_submitted: frames of requests that have come.
    """

    def __init__(
        self, predictor: Predictor, models: Sequence[ServedModel], board: Board, answering: Answering, name: str
    ) -> None:
        self.name = name
        self.is_listening, self.has_closed, self.is_lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.num_connections = self.num_submitted = 0
        self._predictor = predictor
        self._models = tuple(models)
        self._references = tuple(ModelReference(model.name) for model in models)
        self._widths = tuple(model.fitted.encode_context().shape[1] for model in models)
        self._board = board
        self._answering = answering
        self._channel: Channel | None = None
        self._admitted: dict[int, AdmittedRequest] = {}
        self._arriving: dict[int, _Arriving] = {}
        self._answers: list[Answer] = []
        self._failures: list[tuple[int, Failure]] = []

    def attach(self, channel: Channel) -> None:
        """The connection to the front."""
        self._channel = channel

    def send(self, message: Message) -> None:
        """Send a message to the front; nothing where it is gone."""
        if self._channel is not None:
            self._channel.send(message_frame(message))

    def abort(self) -> None:
        """Hang up, which ends the front and cuts its connections."""
        if self._channel is not None:
            self._channel.abort()

    def receive(self, kind: int, payload: memoryview) -> None:
        """One frame of the front. Raises MalformedFrame."""
        if kind == Kind.SUBMITTED:
            self.num_submitted += 1
            for number, model, priority, arrived_at, deadline, rows in read_submitted(payload):
                self._admit(number, model, priority, arrived_at, deadline, rows)
            self._board.touch()
        elif kind == Kind.PART:
            self._take_part(*read_part(payload))
        elif kind == Kind.MESSAGE:
            self._hear(read_message(FROM_FRONT, payload))
        else:
            raise MalformedFrame(f"a front sends no frames of kind {kind}")

    def lost(self) -> None:
        """The front is gone."""
        self._channel = None
        self._arriving.clear()
        self._withdraw(list(self._admitted))
        self.num_connections = 0
        self.has_closed.set()
        self.is_lost.set()

    def conclude(self, number: int, outcome: Outcome) -> None:
        """A request has its outcome, which is sent at the end of this turn of the event loop."""
        self._admitted.pop(number, None)
        if not self._answers and not self._failures:
            asyncio.get_running_loop().call_soon(self._flush)
        if isinstance(outcome, Prediction):
            timing = outcome.timing
            self._answers.append(
                Answer(number, outcome.batch_rows, timing.queue_ms, timing.compute_ms, outcome.outputs)
            )
        else:
            self._failures.append((number, describe_error(outcome)))

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        failures, self._failures = self._failures, []
        if self._channel is not None:
            self._board.write()  # first: a caller with its answer must not be refused because of the request it had
            if answers:
                self._channel.send(answers_frame(answers))
            if failures:
                self.send(Failures(failures))

    def _admit(self, number: int, model: int, priority: int, arrived_at: float, deadline: float, rows: Matrix) -> None:
        try:
            served, reference, width = self._models[model], self._references[model], self._widths[model]
            request = FrontRequest(self, number, reference, arrived_at, deadline, _PRIORITIES[priority])
        except IndexError:
            raise MalformedFrame(f"a request of model {model} and priority {priority}") from None
        if rows.shape[1] != width or not len(rows) or number in self._admitted:
            raise MalformedFrame(f"a request {number} of {rows.shape[0]} x {rows.shape[1]} numbers")
        try:
            self._admitted[number] = self._predictor.admit_encoded(request, served, rows, request.conclude)
        except ServeError as error:
            self.conclude(number, error)
        except Exception:
            _log.exception("request %s failed", request.request_id)
            self.conclude(number, EngineError("the core failed on this request"))

    def _take_part(self, number: int, part: memoryview) -> None:
        arriving = self._arriving.get(number)
        if arriving is not None and arriving.take(part):  # else it was withdrawn meanwhile
            large = self._arriving.pop(number).large
            self._admit(number, large.model, large.priority, large.arrived_at, large.deadline, arriving.rows)
            self._board.touch()

    def _hear(self, message: FromFront) -> None:
        match message:
            case Report():
                self._count(message)
            case Withdrawn():
                self._withdraw(message.numbers)
            case Large():
                self._await(message)
            case Forward():
                self._answering.answer(message, self.send)
            case Listening():
                self.is_listening.set()
            case Closed():
                self.has_closed.set()

    def _await(self, large: Large) -> None:
        if large.model >= len(self._widths) or large.num_rows > self._predictor.settings.batching.max_request_rows:
            raise MalformedFrame(f"a request of {large.num_rows} rows of model {large.model}")
        self._arriving[large.number] = _Arriving(large, self._widths[large.model])

    def _withdraw(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._arriving.pop(number, None)
            admitted = self._admitted.pop(number, None)
            if admitted is not None:
                self._predictor.withdraw(admitted)

    def _count(self, report: Report) -> None:
        recorder = self._predictor.recorder
        self.num_connections = report.num_connections
        for model, outcome, seconds in report.answered:
            recorder.answered(model, outcome, seconds)
        for model, reason, count in report.refused:
            for _ in range(count):
                recorder.refused(model, reason)
        for reason, count in report.ended:
            for _ in range(count):
                recorder.connection_ended(reason)
        for lag_s in report.lag_s:
            recorder.loop_lagged(lag_s)
