"""The two headers that say how urgent a request is: `x-request-timeout-ms` and `x-priority`."""

from __future__ import annotations

from collections.abc import Iterable

from serve.core import Priority
from serve.core.errors import InvalidInput

TIMEOUT_HEADER = "x-request-timeout-ms"
PRIORITY_HEADER = "x-priority"
MAX_TIMEOUT_MS = 86_400_000
"""A day."""

_TIMEOUT = TIMEOUT_HEADER.encode()
_PRIORITY = PRIORITY_HEADER.encode()


def read_deadline_and_priority(headers: Iterable[tuple[bytes, bytes]]) -> tuple[float | None, Priority]:
    """(seconds until the deadline, None where the request does not say; priority) from raw, lower-case headers.

    Raises InvalidInput.
    """
    timeout_s, priority = None, Priority.INTERACTIVE
    for name, value in headers:
        if name == _TIMEOUT:
            timeout_s = _timeout_s(value)
        elif name == _PRIORITY:
            priority = _priority(value)
    return timeout_s, priority


def _timeout_s(value: bytes) -> float:
    # Digits are counted first, since a number of thousands of digits is slow (and int refuses it).
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
