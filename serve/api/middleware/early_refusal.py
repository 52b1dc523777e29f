"""Refusing at the headers: what an overloaded replica says before it has read a request.

Most of what a refusal costs is the reading and all that a server does for each request it reads. So a server that can
(`serve/connection.py`) asks here as soon as it has the headers. The refusal is the one that the native door would make
after the body, by the same admission, with the same answer and in the same counters, for a request of one row.

What cannot be decided by the headers alone goes the ordinary road and hears there what is wrong with it: other routes,
models that are not here, headers that cannot be understood, a replica that drains. So does a request whose body may
need more than being thrown away: chunked, larger than the limit, or held back for `100 Continue`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.responses import Response

from serve.api.middleware.request_id import REQUEST_ID_HEADER, request_id_of
from serve.api.native.door import asked_model
from serve.api.problems import CALLER_ERRORS, respond
from serve.api.request_headers import read_deadline_and_priority
from serve.core import ModelReference
from serve.core.errors import Overloaded
from serve.replica.predictor import Predictor

_MOST_DIGITS = 12
"""Of a Content-Length that is looked at; thousands of them are slow to read."""


class EarlyRefusal:
    """Called with a request's method, target and raw, lower-case headers: the answer if it is refused already."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._max_body_bytes = predictor.settings.api.max_body_bytes

    def __call__(self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]]) -> Response | None:
        name = asked_model(method, target)
        if name is None or not self._is_plain(headers):
            return None
        try:
            model = self._predictor.model(ModelReference(name))
            timeout_s, priority = read_deadline_and_priority(headers)
            request_id = request_id_of(headers)
            deadline = time.monotonic() + (model.timeout_s if timeout_s is None else timeout_s)
            self._predictor.precheck(model, deadline, priority)
        except Overloaded as error:
            self._predictor.recorder.answered(name, error.code, 0.0)
            response = respond(error, request_id)
            response.raw_headers.append((REQUEST_ID_HEADER, request_id.encode("ascii")))
            return response
        except CALLER_ERRORS:
            pass
        return None

    def _is_plain(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """It has a body of a declared length within the limit, which is on its way."""
        given = dict(headers)
        length = given.get(b"content-length", b"")
        if not length.isdigit() or len(length) > _MOST_DIGITS or b"expect" in given or b"upgrade" in given:
            return False
        return int(length) <= self._max_body_bytes
