"""The one table from errors to HTTP statuses, and the `application/problem+json` (RFC 9457) body of the native door.

What is always true:
- a caller meets only the classes of `STATUSES`; anything else is a bug of ours, answered as `internal_error` without a
  word of what happened, and logged once by `edge.py`;
- `code` is for programs and never changes its meaning; `docs/errors.md` lists every one (tests/api/test_problems.py).

`type` stays `about:blank`, so by the RFC `title` is the status's own phrase; what is specific is in `code` and
`detail`.
"""

from __future__ import annotations

import http
import math
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serve.core.errors import (
    DeadlineExceeded,
    Draining,
    EngineError,
    InvalidInput,
    NotReady,
    Overloaded,
    ServeError,
    TooLarge,
    UnknownModel,
)

MEDIA_TYPE = "application/problem+json"
INTERNAL_ERROR = "internal_error"


class InvalidHeader(ServeError):
    """A request header that we read cannot be understood."""

    code = "invalid_header"


class InvalidJson(ServeError):
    """The body is not JSON in UTF-8."""

    code = "invalid_json"


class UnsupportedMediaType(ServeError):
    """The body says that it is something else than JSON."""

    code = "unsupported_media_type"


class UnknownRoute(ServeError):
    """Nothing lives at this path."""

    code = "unknown_route"


class MethodNotAllowed(ServeError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


STATUSES: Mapping[type[ServeError], int] = {
    InvalidHeader: 400,
    InvalidJson: 400,
    UnknownModel: 404,
    UnknownRoute: 404,
    MethodNotAllowed: 405,
    TooLarge: 413,
    UnsupportedMediaType: 415,
    InvalidInput: 422,
    Overloaded: 429,
    EngineError: 500,
    NotReady: 503,
    Draining: 503,
    DeadlineExceeded: 504,
}
CALLER_ERRORS = tuple(STATUSES)
"""What an `except` clause at the door catches: everything that may be told to a caller."""

# What an EngineError or a bug says is for the log; these words stand for it.
_ENGINE_DETAIL = "the model failed on this request; the cause is in the server's log"
_INTERNAL_DETAIL = "the server failed on this request; the cause is in the server's log under this request_id"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong with one request."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    row: int | msgspec.UnsetType = msgspec.UNSET
    column: str | msgspec.UnsetType = msgspec.UNSET


def describe(error: BaseException, request_id: str) -> Problem:
    """The problem of any error; what is not in `STATUSES` becomes `internal_error`."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            assert isinstance(error, ServeError)
            return _known(error, STATUSES[kind], request_id)
    return _problem(500, INTERNAL_ERROR, _INTERNAL_DETAIL, request_id)


def _known(error: ServeError, status: int, request_id: str) -> Problem:
    detail = _ENGINE_DETAIL if isinstance(error, EngineError) else str(error)
    problem = _problem(status, error.code, detail, request_id)
    if isinstance(error, InvalidInput):
        problem.row = msgspec.UNSET if error.row is None else error.row
        problem.column = msgspec.UNSET if error.column is None else error.column
    return problem


def _problem(status: int, code: str, detail: str, request_id: str) -> Problem:
    title = http.HTTPStatus(status).phrase
    return Problem(type="about:blank", title=title, status=status, detail=detail, code=code, request_id=request_id)


def respond(error: BaseException, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """The whole answer to an error, with Retry-After where trying again helps."""
    problem = describe(error, request_id)
    all_headers = dict(headers or {})
    if isinstance(error, Overloaded):
        all_headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, (NotReady, Draining)):
        all_headers["retry-after"] = "1"
    return Response(msgspec.json.encode(problem), problem.status, all_headers, MEDIA_TYPE)


def from_http(error: HTTPException, method: str, path: str) -> Exception:
    """What the router or the static files raised, as one of ours; the error itself where that would be our bug."""
    if error.status_code == 404:
        return UnknownRoute(f"nothing is served at {path}; /docs shows what is")
    if error.status_code == 405:
        return MethodNotAllowed(f"{method} is not served at {path}; the Allow header names what is")
    return error
