"""The request headers that all doors share: `x-request-id`, `x-request-timeout-ms` and `x-priority`.

Every function reads the raw, lower-case headers of ASGI.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

from starlette.responses import Response

from serve.api.errors import InvalidHeader
from serve.core import Priority
from serve.core.errors import InvalidInput

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-ms"
PRIORITY_HEADER = "x-priority"

MAX_REQUEST_ID_CHARS = 128
MAX_TIMEOUT_MS = 86_400_000
"""A day."""

REQUEST_ID = REQUEST_ID_HEADER.encode()
_TIMEOUT = TIMEOUT_HEADER.encode()
_PRIORITY = PRIORITY_HEADER.encode()
DEADLINE_AND_PRIORITY = (_TIMEOUT, _PRIORITY)

_PROCESS = os.urandom(8).hex()
_numbers = itertools.count()


def read_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's request id, or a new one. Raises InvalidHeader."""
    for name, value in headers:
        if name == REQUEST_ID:
            request_id = value.decode("latin-1")
            if 0 < len(request_id) <= MAX_REQUEST_ID_CHARS and request_id.isascii() and request_id.isprintable():
                return request_id
            raise InvalidHeader(f"{REQUEST_ID_HEADER} must be 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters")
    return new_request_id()


def new_request_id() -> str:
    """32 hexadecimal digits: 16 random ones of this process, then a number. Random ones for each cost 4 us."""
    return f"{_PROCESS}{next(_numbers):016x}"


def add_request_id(response: Response, request_id: str) -> Response:
    """`response` itself, with `x-request-id`."""
    response.raw_headers.append((REQUEST_ID, request_id.encode("ascii")))
    return response


def read_deadline_and_priority(headers: Iterable[tuple[bytes, bytes]]) -> tuple[float | None, Priority]:
    """Seconds from arrival to deadline, None without `x-request-timeout-ms`; and the priority. Raises InvalidInput."""
    timeout_s, priority = None, Priority.INTERACTIVE
    for name, value in headers:
        if name == _TIMEOUT:
            timeout_s = _timeout_s(value)
        elif name == _PRIORITY:
            priority = _priority(value)
    return timeout_s, priority


def _timeout_s(value: bytes) -> float:
    # The digits are counted first, because `int` is slow on thousands of digits and then refuses them.
    digits = value.strip()
    if digits.isdigit() and len(digits.lstrip(b"0")) <= len(str(MAX_TIMEOUT_MS)):
        timeout_ms = int(digits)
        if 1 <= timeout_ms <= MAX_TIMEOUT_MS:
            return timeout_ms / 1e3
    raise InvalidInput(
        f"{TIMEOUT_HEADER} must be a whole number of milliseconds from 1 to {MAX_TIMEOUT_MS}", code="invalid_timeout"
    )


def _priority(value: bytes) -> Priority:
    try:
        return Priority(value.strip().decode("latin-1"))
    except ValueError:
        known = " or ".join(priority.value for priority in Priority)
        raise InvalidInput(f"{PRIORITY_HEADER} must be {known}", code="invalid_priority") from None
