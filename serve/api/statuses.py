"""The table from errors to HTTP and gRPC statuses, and what a caller may read about an error.

What is always true:
- a caller meets only the classes of `STATUSES`. Any other exception is a fault of the server: the caller gets
  `internal_error` without a word about the cause, and the log has the traceback;
- the text of an `EngineError` stays in the log too;
- a `code` never changes its meaning. `docs/errors.md` lists every code with both statuses (tests/api/test_statuses.py).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from serve.api.errors import (
    HeadersTooLarge,
    InvalidHeader,
    InvalidJson,
    InvalidRequest,
    MethodNotAllowed,
    RequestTimeout,
    TooManyConnections,
    UnknownRoute,
    UnsupportedMediaType,
)
from serve.core.errors import (
    DeadlineExceeded,
    DeadlineTooShort,
    Draining,
    EngineError,
    InvalidInput,
    NotReady,
    Overloaded,
    ServeError,
    TooLarge,
    UnknownModel,
)


class GrpcStatus(enum.IntEnum):
    """The gRPC status codes that a caller can meet, with the names and numbers of the gRPC specification."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Status(NamedTuple):
    """One row of the table."""

    http: int
    grpc: GrpcStatus


STATUSES: Mapping[type[ServeError], Status] = {
    InvalidHeader: Status(400, GrpcStatus.INVALID_ARGUMENT),
    InvalidJson: Status(400, GrpcStatus.INVALID_ARGUMENT),
    InvalidRequest: Status(400, GrpcStatus.INVALID_ARGUMENT),
    UnknownModel: Status(404, GrpcStatus.NOT_FOUND),
    UnknownRoute: Status(404, GrpcStatus.UNIMPLEMENTED),
    MethodNotAllowed: Status(405, GrpcStatus.UNIMPLEMENTED),
    RequestTimeout: Status(408, GrpcStatus.DEADLINE_EXCEEDED),
    # Not RESOURCE_EXHAUSTED: clients repeat a call with that status, and a repetition cannot help here.
    TooLarge: Status(413, GrpcStatus.INVALID_ARGUMENT),
    UnsupportedMediaType: Status(415, GrpcStatus.INVALID_ARGUMENT),
    InvalidInput: Status(422, GrpcStatus.INVALID_ARGUMENT),
    # Not DEADLINE_EXCEEDED: no time has passed, and a repetition cannot help.
    DeadlineTooShort: Status(422, GrpcStatus.INVALID_ARGUMENT),
    Overloaded: Status(429, GrpcStatus.RESOURCE_EXHAUSTED),
    HeadersTooLarge: Status(431, GrpcStatus.INVALID_ARGUMENT),
    EngineError: Status(500, GrpcStatus.INTERNAL),
    NotReady: Status(503, GrpcStatus.UNAVAILABLE),
    Draining: Status(503, GrpcStatus.UNAVAILABLE),
    TooManyConnections: Status(503, GrpcStatus.UNAVAILABLE),
    DeadlineExceeded: Status(504, GrpcStatus.DEADLINE_EXCEEDED),
}
CALLER_ERRORS = tuple(STATUSES)
"""Every error that a caller may meet, for an `except` clause."""

INTERNAL_ERROR = "internal_error"
"""The code of every other exception."""
INTERNAL_STATUS = Status(500, GrpcStatus.INTERNAL)

_ENGINE_DETAIL = "the model failed on this request; the cause is in the server's log"
_INTERNAL_DETAIL = "the server failed on this request; the cause is in the server's log under this request_id"


@dataclass(frozen=True, slots=True)
class PublicError:
    """What a caller may read about an error. Each door writes it in its own format.

    Attributes:
        code: for programs.
        detail: for people.
        row: the row at fault, from 0; None where the fault has no row.
        column: the name of the column at fault; None where the fault has no column.
        retry_after_s: whole seconds until another try can help, 1 or more; None where another try is no remedy.
    """

    status: Status
    code: str
    detail: str
    row: int | None = None
    column: str | None = None
    retry_after_s: int | None = None


def public_error(error: BaseException) -> PublicError:
    """What a caller may read about any exception. A subclass has the status of its nearest class in `STATUSES`."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            assert isinstance(error, ServeError)
            return _known_error(error, STATUSES[kind])
    return PublicError(INTERNAL_STATUS, INTERNAL_ERROR, _INTERNAL_DETAIL)


def _known_error(error: ServeError, status: Status) -> PublicError:
    if isinstance(error, EngineError):
        return PublicError(status, error.code, _ENGINE_DETAIL)
    if isinstance(error, InvalidInput):
        return PublicError(status, error.code, str(error), error.row, error.column)
    return PublicError(status, error.code, str(error), retry_after_s=_retry_after_s(error))


def _retry_after_s(error: ServeError) -> int | None:
    if isinstance(error, Overloaded):
        return max(1, math.ceil(error.retry_after_s))
    return 1 if isinstance(error, (NotReady, Draining, TooManyConnections)) else None
