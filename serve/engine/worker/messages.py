"""The messages between a replica and its worker. `wire.py` makes frames of them.

Every field has a declared type, which the receiver checks. An error crosses as its class's name and its attributes, and
only a class of `serve.core.errors` comes out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import msgspec

from serve.core import ModelDefinition, errors
from serve.core.errors import EngineError, InvalidInput, Overloaded, ServeError
from serve.engine.coding import Coding

_Length: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Shape: TypeAlias = tuple[_Length, _Length]
"""Rows and columns of a matrix."""

MAX_IN_FLIGHT = 2
"""Most batches that any engine may have in flight."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of every message. A message with a matrix in its frame's body has a field `shape`."""


# --- calls, from the replica


class Start(Message, frozen=True):
    """Make the engine. `settings` is the JSON of `EngineSettings`. Answered by `Started`."""

    settings: str
    max_batch_rows: int


class Fit(Message, frozen=True):
    """Fit a model. Answered by `Fitted`."""

    model: ModelDefinition


class SharedSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A matrix in a slot of `shared_rows.SharedRows`."""

    number: Annotated[int, msgspec.Meta(ge=0, lt=MAX_IN_FLIGHT)]
    shape: Shape


class Predict(Message, frozen=True):
    """Answer encoded rows by the fitted context of number `context`. Answered by `Answered`.

    The rows are in the body, or in the slot `shared`; the body is then empty.
    """

    context: int
    shape: Shape
    shared: SharedSlot | None = None


class Reference(Message, frozen=True):
    """Answer the encoded rows in the body by `Engine.reference`, as `Predict`."""

    context: int
    shape: Shape


Call: TypeAlias = Start | Fit | Predict | Reference


# --- answers, from the worker


class Started(Message, frozen=True):
    """The engine is ready for `Fit`. So many `Predict` may be sent before the first of them is answered."""

    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=MAX_IN_FLIGHT)]


class ColumnCoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `coding.Coding` with its mapping as two lists of one length; both None where the mapping is None."""

    values: list[str | float | None] | None
    codes: list[float] | None
    missing: float
    unknown: float
    constant: float | None
    keeps_zero_sign: bool = True
    limits: tuple[float, float] | None = None


class Fitted(Message, frozen=True):
    """What the replica needs of a fitted context. The body holds the context's own rows, encoded.

    `canary_slack` has a list of floats for each canary row; see `FittedContext`.
    """

    context: int
    classes: tuple[str, ...]
    backend: str
    codings: list[ColumnCoding]
    shape: Shape
    canary_slack: list[list[float]] | None = None


class Answered(Message, frozen=True):
    """The body holds the outputs, one row for each row of the call.

    Attributes:
        backend: the context's now; None as before.
        prepared_s: seconds from the call's arrival until the device had the batch, where a second one may be in flight.
        ended_at: when the outputs were there, in seconds of `time.monotonic`.
    """

    shape: Shape
    backend: str | None = None
    prepared_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    ended_at: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Failed(Message, frozen=True):
    """The call raised an error whose class has no attributes beside its text."""

    error: str
    detail: str


class FailedInput(Message, frozen=True):
    """The call raised InvalidInput."""

    detail: str
    code: str
    row: int | None
    column: str | None


class FailedOverload(Message, frozen=True):
    """The call raised Overloaded."""

    detail: str
    retry_after_s: float
    reason: str


Failure: TypeAlias = Failed | FailedInput | FailedOverload

_CLASSES: Mapping[str, type[ServeError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ServeError)
}


def describe_error(error: ServeError) -> Failure:
    """The error as a message. A subclass that `serve.core.errors` does not define becomes its nearest base there."""
    detail = _text(str(error))
    if isinstance(error, InvalidInput):
        column = None if error.column is None else _text(error.column)
        return FailedInput(detail, error.code, error.row, column)
    if isinstance(error, Overloaded):
        return FailedOverload(detail, error.retry_after_s, error.reason)
    name = next(kind.__name__ for kind in type(error).__mro__ if kind in _CLASSES.values())
    return Failed(name, detail)


def restore_error(failure: Failure) -> ServeError:
    """The error that was described; EngineError for a name that is no class of `serve.core.errors`."""
    if isinstance(failure, FailedInput):
        return InvalidInput(failure.detail, code=failure.code, row=failure.row, column=failure.column)
    if isinstance(failure, FailedOverload):
        return Overloaded(failure.detail, retry_after_s=failure.retry_after_s, reason=failure.reason)
    kind = _CLASSES.get(failure.error, EngineError)
    if kind in (InvalidInput, Overloaded):  # they come with their attributes, or not at all
        kind = EngineError
    return kind(failure.detail)


def _text(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair, which JSON may bring, is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def describe_coding(coding: Coding) -> ColumnCoding:
    """A column's coding as plain data."""
    if coding.codes is None:
        values, codes = None, None
    else:
        # a context's numbers are numpy's; MessagePack knows Python's
        values = [value if value is None or isinstance(value, str) else float(value) for value in coding.codes]
        codes = [float(code) for code in coding.codes.values()]
    constant = None if coding.constant is None else float(coding.constant)
    return ColumnCoding(
        values, codes, float(coding.missing), float(coding.unknown), constant, coding.keeps_zero_sign, coding.limits
    )


def restore_coding(coding: ColumnCoding) -> Coding:
    """The coding that was described. Raises ValueError where the two lists differ in length."""
    codes = None
    if coding.values is not None or coding.codes is not None:
        codes = dict(zip(coding.values or (), coding.codes or (), strict=True))
    return Coding(codes, coding.missing, coding.unknown, coding.constant, coding.keeps_zero_sign, coding.limits)
