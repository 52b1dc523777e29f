"""The errors that a caller or operator can meet. Knows no HTTP: `api/statuses.py` has the table of statuses.

Each class has a stable `code` for programs; the message is for people and, except for EngineError, may leave the
server. Client faults are raised before the queue; EngineError is shared by the requests of one batch.
"""

from __future__ import annotations


class ServeError(Exception):
    """Root of the tree."""

    code = "error"


class InvalidInput(ServeError):
    """The request's own fault, with the place: `row` counts from 0, `column` is the input's name.

    `code` says which fault; see `docs/errors.md` for the list.
    """

    code = "invalid_input"

    def __init__(self, detail: str, *, code: str = "invalid_input", row: int | None = None, column: str | None = None):
        super().__init__(detail)
        self.code = code
        self.row = row
        self.column = column


class UnknownModel(ServeError):
    """No model of that name (or version) is served here."""

    code = "unknown_model"


class TooLarge(ServeError):
    """More bytes or rows than one request may have."""

    code = "too_large"


class Overloaded(ServeError):
    """Refused at the door, before any work; try again after `retry_after_s`. `reason` is the metrics' label."""

    code = "overloaded"

    def __init__(self, detail: str, *, retry_after_s: float, reason: str = "requests"):
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.reason = reason


class NotReady(ServeError):
    """Models are still being fitted and warmed up."""

    code = "not_ready"


class Draining(ServeError):
    """Shutting down: what was admitted is answered, nothing new is."""

    code = "draining"


class DeadlineExceeded(ServeError):
    """The caller's deadline passed before an answer."""

    code = "deadline_exceeded"


class EngineError(ServeError):
    """The device failed on a batch. The message stays in the log."""

    code = "engine_error"


class OutOfMemory(EngineError):
    """The device had no memory for so many rows. Raised by an engine for the batcher, which tries fewer; no caller
    meets it."""


class DeviceLost(EngineError):
    """The engine is gone with all that it held; nothing can be answered any more and the replica must be replaced."""


class StartupError(ServeError):
    """A replica must not become ready: a model, its checkpoint, warm-up or the parity check is at fault."""

    code = "startup_failed"


class InvalidModel(StartupError):
    """A model folder, its manifest, context or checkpoint cannot be served."""

    code = "invalid_model"
