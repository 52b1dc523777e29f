"""The fast path: predictions of small requests without an ASGI cycle, a task, a future or a timer for each.

Theory of operation
-------------------
The layers of an ASGI server cost four times what a prediction costs on the event loop
(docs/decisions/001-cost-of-the-front.md). So the HTTP protocol (`edges/fast_path_protocol.py`) asks here first:

1. `begin`, at the end of the headers. The headers decide whether the request takes the fast path. An overloaded replica
   refuses it here (*early refusal*): the refusal is the one that the request would get after its body, by the same
   admission, for one row.
2. `submit`, at the end of the body: the door reads it, and the predictor admits it. The outcome comes by a callback.
3. `respond`, which the caller of `submit` gave, is called once with the response.
4. `leave`, where the connection is lost before: the rows are not computed if they still wait.

All else takes the ordinary way, through ASGI, on the same connection: other routes, unknown models, headers that are
invalid, bodies that are large, of unknown length, or held back for `100 Continue`. Doors, admission, counters and
answers are the same on both ways, so a caller cannot tell which one a request took.

What is always true:
- each request is counted once, by `report_outcome`;
- what the headers decide is kept for the next request with equal headers. The key holds every header that a decision
  depends on: those that all doors share, and `Door.decisive_headers`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.responses import Response

from serve.api.door import Door, RawHeaders, RequestHead
from serve.api.predictions import Predictions
from serve.api.request_headers import (
    DEADLINE_AND_PRIORITY,
    REQUEST_ID,
    add_request_id,
    new_request_id,
    read_deadline_and_priority,
    read_request_id,
)
from serve.api.statuses import CALLER_ERRORS, INTERNAL_ERROR
from serve.core import ModelReference, Prediction, PredictRequest, Priority
from serve.core.errors import DeadlineTooShort, Overloaded
from serve.replica.interface import Replica, report_outcome
from serve.replica.large_requests import SMALL_BYTES, SMALL_ROWS

_log = logging.getLogger(__name__)

_LENGTH = b"content-length"
_MAX_LENGTH_DIGITS = 12
"""A longer `Content-Length` is not read here, because `int` is slow on thousands of digits."""

_NEEDS_ASGI = frozenset({b"expect", b"upgrade", b"transfer-encoding"})
"""Headers of requests that take the ordinary way."""

_MAX_KEPT = 256
_MAX_KEY_BYTES = 1024
"""How many decisions are kept, and for how long headers, so that callers cannot fill the memory."""

Respond = Callable[[Response], None]
_Key = tuple[object, ...]


class _Decision(NamedTuple):
    """What the headers say of a request, apart from its request id and its length."""

    door: Door
    reference: ModelReference
    timeout_s: float | None
    priority: Priority


class FastRequest:
    """One request on the fast path.

    Attributes:
        refusal: the response of an early refusal; the body is of no use then.
        is_prechecked: nothing has happened since admission was asked for one row. A request of one row whose body came
            with its headers is so admitted by one check, not by two.
    """

    __slots__ = (
        "admitted", "door", "head", "is_counted", "is_prechecked", "predict_request", "refusal", "respond", "task",
    )  # fmt: skip

    def __init__(self, door: Door, head: RequestHead) -> None:
        self.door = door
        self.head = head
        self.refusal: Response | None = None
        self.predict_request: PredictRequest | None = None
        self.respond: Respond | None = None
        self.admitted: Any = None
        self.task: asyncio.Task[None] | None = None
        self.is_counted = False
        self.is_prechecked = True


class FastPath:
    """The fast path of one replica. Lives on its event loop."""

    def __init__(self, replica: Replica, predictions: Predictions, doors: Sequence[Door]) -> None:
        self._replica = replica
        self._predictions = predictions
        self._max_body_bytes = replica.settings.api.max_body_bytes
        shared = {*_NEEDS_ASGI, *DEADLINE_AND_PRIORITY}
        self._decisive = shared.union(*(door.decisive_headers for door in doors))
        self._decisions: dict[_Key, _Decision | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: dict[tuple[str, str | None, str], list[float]] = {}
        """The seconds of each request that is to be reported, by its model, version and outcome."""

    def begin(self, method: str, target: str, headers: RawHeaders) -> FastRequest | None:
        """The request, or None where it takes the ordinary way."""
        arrived_at = time.monotonic()
        length, request_id = b"", None
        decisive = self._decisive
        key: list[object] = [method, target]
        for header in headers:
            name = header[0]
            if name == _LENGTH:
                length = header[1]
            elif name == REQUEST_ID:
                request_id = header[1]
            elif name in decisive:
                key.append(header)
        decision = self._decide(tuple(key), method, target, headers)
        if decision is None or not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
            return None
        num_bytes = int(length)
        if num_bytes > self._max_body_bytes:
            return None
        request = self._admissible(decision, headers, arrived_at, request_id)
        if request is None or (num_bytes > SMALL_BYTES and request.refusal is None):
            return None
        return request

    def _decide(self, key: _Key, method: str, target: str, headers: RawHeaders) -> _Decision | None:
        try:
            return self._decisions[key]
        except KeyError:
            pass
        decision = self._decide_anew(method, target, headers)
        if sum(len(name) + len(value) for name, value in headers) + len(target) <= _MAX_KEY_BYTES:
            if len(self._decisions) >= _MAX_KEPT:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision

    def _decide_anew(self, method: str, target: str, headers: RawHeaders) -> _Decision | None:
        matched = self._predictions.match(method, target, headers)
        if matched is None or any(name in _NEEDS_ASGI for name, _ in headers):
            return None
        door, reference = matched
        try:
            timeout_s, priority = read_deadline_and_priority(headers)
            door.check_headers(Headers(raw=headers))
        except CALLER_ERRORS:
            return None
        return _Decision(door, reference, timeout_s, priority)

    def _admissible(
        self, decision: _Decision, headers: RawHeaders, arrived_at: float, request_id: bytes | None
    ) -> FastRequest | None:
        """The request, or its early refusal; None where the model or the request id is at fault."""
        door, reference, timeout_s, priority = decision
        try:
            model = self._replica.model(reference)
            deadline = model.deadline(arrived_at, timeout_s)
            named = new_request_id() if request_id is None else read_request_id(headers)
            head = RequestHead(model, reference, headers, arrived_at, deadline, priority, named)
            request = FastRequest(door, head)
            self._replica.precheck(model, deadline, priority)
        except (Overloaded, DeadlineTooShort) as error:
            request.refusal = self._refuse(request, error)
        except CALLER_ERRORS:
            return None
        return request

    def submit(self, request: FastRequest, body: bytes, respond: Respond) -> None:
        """Answer the request with this body. `respond` is called once, now or later, unless `leave` comes before."""
        request.respond = respond
        try:
            predict_request = request.predict_request = request.door.read(request.head, body)
            num_rows = predict_request.table.num_rows
            if num_rows > SMALL_ROWS:
                self._predict_on_task(request, predict_request)
            else:
                is_checked = request.is_prechecked and num_rows == 1
                request.admitted = self._replica.admit(
                    predict_request, partial(self._conclude, request), is_checked=is_checked
                )
        except Exception as error:
            respond(self._refuse(request, error))

    def leave(self, request: FastRequest) -> None:
        """The connection is lost; nothing where the request has its response."""
        if not request.is_counted:
            if request.admitted is not None:
                self._replica.withdraw(request.admitted)
            if request.task is not None:
                request.task.cancel()
            self._count(request, "client_disconnected")

    def _conclude(self, request: FastRequest, outcome: Prediction | Exception) -> None:
        respond = request.respond
        assert respond is not None
        respond(self._answer(request, outcome) if isinstance(outcome, Prediction) else self._refuse(request, outcome))

    def _answer(self, request: FastRequest, prediction: Prediction) -> Response:
        head, predict_request = request.head, request.predict_request
        assert predict_request is not None
        total_ms = 1e3 * (time.monotonic() - head.arrived_at)
        try:
            response = request.door.write(head.model, predict_request, prediction, total_ms)
        except Exception as error:
            return self._refuse(request, error)
        self._count(request, "ok")
        return add_request_id(response, head.request_id) if self._predictions.answers_request_id else response

    def _refuse(self, request: FastRequest, error: Exception) -> Response:
        """The response to an error, which is counted, and logged where it is a fault of the server."""
        request_id = request.head.request_id
        if isinstance(error, CALLER_ERRORS):
            outcome = error.code
        else:
            outcome = INTERNAL_ERROR
            _log.error("request %s failed", request_id, exc_info=error)
        self._count(request, outcome)
        response = request.door.render(error, request_id)
        return add_request_id(response, request_id) if self._predictions.answers_request_id else response

    def _count(self, request: FastRequest, outcome: str) -> None:
        """Count the outcome. Those of one turn of the event loop, such as a batch's, are reported together."""
        request.is_counted = True
        request.admitted = None  # it refers to this request
        if not self._outcomes:
            asyncio.get_running_loop().call_soon(self._report)
        reference = request.head.reference
        key = (reference.name, reference.version, outcome)
        seconds = self._outcomes.get(key)
        if seconds is None:
            seconds = self._outcomes[key] = []
        seconds.append(time.monotonic() - request.head.arrived_at)

    def _report(self) -> None:
        outcomes, self._outcomes = self._outcomes, {}
        for (name, version, outcome), seconds in outcomes.items():
            report_outcome(self._replica, ModelReference(name, version), outcome, seconds)

    def _predict_on_task(self, request: FastRequest, predict_request: PredictRequest) -> None:
        """As `submit`, for rows that are encoded on another thread."""

        async def predict() -> None:
            try:
                outcome: Prediction | Exception = await self._replica.predict(predict_request)
            except Exception as error:
                outcome = error
            self._conclude(request, outcome)

        request.task = asyncio.get_running_loop().create_task(predict())
        self._tasks.add(request.task)
        request.task.add_done_callback(self._tasks.discard)
