"""Early refusal: an overloaded replica refuses a request by its headers, before the server reads the body.

Most of the cost of a refusal is the reading of the request and the work of the HTTP server for each request. So a
server that can (`edges/early_refusal_protocol.py`) asks here as soon as it has the headers. The refusal is the one that
the request would get after its body, by the same admission (`Predictor.precheck`), for one row. The door renders the
answer, and the counters are the same.

A request is left to the ordinary way where the headers alone do not decide: other routes, unknown models, invalid
headers, a replica that drains. So is a request whose body needs more than to be discarded: chunked, larger than the
limit, or held back for `100 Continue`.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.responses import Response

from serve.api.door import RawHeaders
from serve.api.predictions import Predictions
from serve.api.request_headers import read_request_id
from serve.api.statuses import CALLER_ERRORS
from serve.core.errors import DeadlineTooShort, Overloaded
from serve.replica.predictor import Predictor

_MAX_LENGTH_DIGITS = 12
"""A longer `Content-Length` is not read here, because `int` is slow on thousands of digits."""


class EarlyRefusal:
    """Called with a request's method, target and raw headers: the response of an early refusal, or None."""

    def __init__(self, predictor: Predictor, predictions: Predictions) -> None:
        self._predictor = predictor
        self._predictions = predictions
        self._max_body_bytes = predictor.settings.api.max_body_bytes

    def __call__(self, method: str, target: str, headers: RawHeaders) -> Response | None:
        """The response, where one row could not be answered in time now; None for every other request."""
        matched = self._predictions.match(method, target, headers)
        if matched is None or not self._has_plain_body(headers):
            return None
        door, reference = matched
        arrived_at = time.monotonic()
        try:
            request_id = read_request_id(headers)
            head = self._predictions.head(reference, Headers(raw=headers), arrived_at, request_id)
            self._predictor.precheck(head.model, head.deadline, head.priority)
        except (Overloaded, DeadlineTooShort) as error:
            self._predictions.count(reference, error.code, arrived_at)
            return self._predictions.with_request_id(door.render(error, request_id), request_id)
        except CALLER_ERRORS:
            pass
        return None

    def _has_plain_body(self, headers: RawHeaders) -> bool:
        """Whether the body has a declared length within the limit and is on its way."""
        given = dict(headers)
        length = given.get(b"content-length", b"")
        if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS or b"expect" in given or b"upgrade" in given:
            return False
        return int(length) <= self._max_body_bytes
