"""The errors that a caller or an operator can meet. `api/statuses.py` has the table from errors to statuses.

Each class has a stable `code` for programs. The message is for people, and may leave the server, except that of
EngineError. Faults of a caller are raised before the queue; the requests of one batch share an EngineError.
"""

from __future__ import annotations


class ServeError(Exception):
    """Base of every error of the server."""

    code = "error"


class InvalidInput(ServeError):
    """The request is at fault. `row` (from 0) and `column` (its name) say where.

    `code` says which fault it is; `docs/errors.md` lists the codes.
    """

    code = "invalid_input"

    def __init__(self, detail: str, *, code: str = "invalid_input", row: int | None = None, column: str | None = None):
        super().__init__(detail)
        self.code = code
        self.row = row
        self.column = column


class UnknownModel(ServeError):
    """No model of that name, or not that version of it, is served here."""

    code = "unknown_model"


class TooLarge(ServeError):
    """The request has more bytes or rows than allowed."""

    code = "too_large"


class DeadlineTooShort(ServeError):
    """The rows of the request take longer than its deadline allows, however idle the replica is. No retry can help."""

    code = "deadline_too_short"


class Overloaded(ServeError):
    """The request was refused before any work; another try may help after `retry_after_s`. `reason` is for metrics."""

    code = "overloaded"

    def __init__(self, detail: str, *, retry_after_s: float, reason: str = "requests"):
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.reason = reason


class NotReady(ServeError):
    """The models are still being fitted and warmed up."""

    code = "not_ready"


class Draining(ServeError):
    """The replica is shutting down: it answers admitted requests, and admits no more."""

    code = "draining"


class DeadlineExceeded(ServeError):
    """The deadline of the request passed before its answer."""

    code = "deadline_exceeded"


class EngineError(ServeError):
    """The device failed on a batch. The message stays in the log."""

    code = "engine_error"


class OutOfMemory(EngineError):
    """The device had no memory for the rows of a batch. The batcher then tries fewer rows, so no caller meets it."""


class DeviceLost(EngineError):
    """The engine is gone with its fitted contexts. The replica answers no more requests and must be replaced."""


class StartupError(ServeError):
    """The replica must not become ready: a model, its checkpoint, the warm-up or the parity check is at fault."""

    code = "startup_failed"


class InvalidModel(StartupError):
    """A model folder, its manifest, context or checkpoint cannot be served."""

    code = "invalid_model"
