"""What stands for the predictor in a front process (`replica.interface.Replica`): it encodes, and the core answers.

Theory of operation
-------------------
A small request is encoded and waits for the end of this turn of the event loop. Then all requests of the turn leave in
one frame. The rows of a large one leave in parts, each when there is room for it, so that small requests pass between.
Until its outcome each request has a number, by which the core names it.

Memory is bounded as in a replica without fronts: a connection has one unanswered small request at most, and a large one
waits for room with its rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from serve.batching import AdmissionLimits, AdmissionPrecheck, Outcome, QueueLimits
from serve.batching.outcomes import settle_future
from serve.batching.snapshot import CopiedAdmission
from serve.core import Matrix, ModelReference, Prediction, PredictRequest, Priority, Timing
from serve.edges.fronts.admission_board import BoardReader
from serve.edges.fronts.channel import Channel
from serve.edges.fronts.frames import PART_BYTES, Submitted, part_frame, read_answers, submitted_frame
from serve.edges.fronts.messages import Failures, Large, Start, Withdrawn, message_frame, restore_model
from serve.edges.fronts.report import ReportingRecorder
from serve.engine.worker.messages import restore_error
from serve.replica.interface import ModelTable, ServedModel, check_num_rows
from serve.replica.large_requests import LargeRequestExecutor
from serve.settings import ServerSettings

_PLACES = {priority: place for place, priority in enumerate(Priority)}


class RemoteReplica:
    """See the head of the file. Lives on the event loop of the channel."""

    def __init__(self, start: Start, channel: Channel, board_fd: int) -> None:
        self.settings = ServerSettings.model_validate_json(start.settings)
        self.device = start.device
        self.recorder = ReportingRecorder(lambda report: channel.send(message_frame(report)))
        self.large_requests = LargeRequestExecutor()
        self._channel = channel
        served = [restore_model(model) for model in start.models]
        self._models = ModelTable()
        for model in served:
            self._models.add(model)
        self._models.is_complete = True
        self._places = {id(model.fitted): place for place, model in enumerate(served)}
        self._board = BoardReader(board_fd, len(served))
        self._admission = self._copied_admission(served)
        self._precheck = AdmissionPrecheck(self._admission)
        self._last_number = 0
        self._waiting: dict[int, Callable[[Outcome], None]] = {}
        self._submitted: list[Submitted] = []
        self._withdrawn: list[int] = []

    def _copied_admission(self, served: Sequence[ServedModel]) -> CopiedAdmission:
        batching = self.settings.batching
        contexts = [model.fitted for model in served]
        limits = QueueLimits.of(batching), AdmissionLimits.of(batching)
        admission = CopiedAdmission(contexts, *limits, self.recorder)
        for model in served:
            admission.set_max_backlog(model.fitted, model.timeout_s)
        copy = self._board.changed()
        assert copy is not None, "this is a bug: the board is written before a front starts"
        admission.take(copy)
        return admission

    def models(self) -> list[ServedModel]:
        """Every served model, by name."""
        return self._models.all()

    def model(self, reference: ModelReference) -> ServedModel:
        """The served model that a request names. Raises UnknownModel."""
        return self._models.find(reference)

    def precheck(self, model: ServedModel, deadline: float, priority: Priority) -> None:
        """Return if the core would admit a request of one row now, by the newest copy of its state.

        Raises Draining, Overloaded, DeadlineTooShort.
        """
        copy = self._board.changed()
        if copy is not None:
            self._admission.take(copy)
        self._precheck.check(model.name, model.fitted, deadline, priority, time.monotonic())

    async def predict(self, request: PredictRequest) -> Prediction:
        """Answer the rows of one request. Raises as `Predictor.predict`."""
        model = self._checked(request)
        rows = await self.large_requests.encode(model.fitted, request.table)
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        number = self._number(partial(settle_future, answer))
        try:
            await self._send_rows(number, model, request, rows)
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # counts as retrieved even where a cancellation came first
            self.withdraw(number)

    def admit(
        self,
        request: PredictRequest,
        on_outcome: Callable[[Outcome], None],
        *,
        is_checked: bool = False,  # noqa: ARG002  (the core checks each request: the copy here may be old)
    ) -> int:
        """As `predict`, for at most `SMALL_ROWS` rows, with a callback; returns the number of the request."""
        model = self._checked(request)
        rows = model.fitted.encode(request.table)
        number = self._number(on_outcome)
        self._submit(number, model, request, rows)
        return number

    def withdraw(self, number: int) -> None:
        """The caller has left; nothing where the request has its outcome."""
        if self._waiting.pop(number, None) is not None:
            self._send_soon()
            self._withdrawn.append(number)

    def answered(self, payload: memoryview) -> None:
        """A frame of answers. Raises MalformedFrame."""
        for number, batch_rows, queue_ms, compute_ms, outputs in read_answers(payload):
            on_outcome = self._waiting.pop(number, None)
            if on_outcome is not None:
                on_outcome(Prediction(outputs, batch_rows, Timing(queue_ms, compute_ms)))

    def failed(self, message: Failures) -> None:
        """Requests that failed."""
        for number, failure in message.failures:
            on_outcome = self._waiting.pop(number, None)
            if on_outcome is not None:
                on_outcome(restore_error(failure))

    def _checked(self, request: PredictRequest) -> ServedModel:
        model = self.model(request.model)
        check_num_rows(request.table.num_rows, self.settings)
        return model

    def _number(self, on_outcome: Callable[[Outcome], None]) -> int:
        self._last_number = (self._last_number + 1) % 2**32
        while self._last_number in self._waiting:
            self._last_number = (self._last_number + 1) % 2**32
        self._waiting[self._last_number] = on_outcome
        return self._last_number

    def _submit(self, number: int, model: ServedModel, request: PredictRequest, rows: Matrix) -> None:
        self._send_soon()
        place, priority = self._places[id(model.fitted)], _PLACES[request.priority]
        self._submitted.append(Submitted(number, place, priority, request.arrived_at, request.deadline, rows))

    async def _send_rows(self, number: int, model: ServedModel, request: PredictRequest, rows: Matrix) -> None:
        if rows.nbytes <= PART_BYTES:
            self._submit(number, model, request, rows)
            return
        place, priority = self._places[id(model.fitted)], _PLACES[request.priority]
        large = Large(number, place, priority, request.arrived_at, request.deadline, len(rows))
        self._channel.send(message_frame(large))
        left = rows.data.cast("B")
        while left:
            await self._channel.drain()
            self._channel.send(part_frame(number, left[:PART_BYTES]))
            left = left[PART_BYTES:]
            await asyncio.sleep(0)  # what other requests have to send goes between the parts

    def _send_soon(self) -> None:
        if not self._submitted and not self._withdrawn:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        submitted, self._submitted = self._submitted, []
        withdrawn, self._withdrawn = self._withdrawn, []
        if submitted:
            self._channel.send(submitted_frame(submitted))
        if withdrawn:
            self._channel.send(message_frame(Withdrawn(withdrawn)))
