"""The messages between the core and a front, and a served model as plain data. `frames.py` carries them.

Every field has a declared type, which the receiver checks. Errors cross as those of the engine's worker do
(`engine/worker/messages.py`): by the name of a class of `serve.core.errors`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import numpy as np

from serve.core import ModelDefinition
from serve.edges.fronts.frames import Kind, MalformedFrame, frame
from serve.engine.row_encoder import RowEncoder
from serve.engine.worker.client import make_handle
from serve.engine.worker.messages import Failure, Fitted, describe_coding
from serve.replica.interface import ServedModel

_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_RawHeaders: TypeAlias = list[tuple[bytes, bytes]]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of every message."""


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A served model, as much of it as a front needs. The rows of its context stay in the core."""

    definition: ModelDefinition
    fitted: Fitted
    timeout_s: float


# --- from the core


class Start(Message, frozen=True):
    """What a front serves. `settings` is the JSON of `ServerSettings`. Answered by `Listening`."""

    settings: str
    device: str
    models: list[Model]


class Failures(Message, frozen=True):
    """Requests that failed, by their numbers."""

    failures: list[tuple[_Number, Failure]]


class Forwarded(Message, frozen=True):
    """The core's answer to a request that was forwarded. Without a status, the core failed on it."""

    number: _Number
    status: int | None
    headers: _RawHeaders
    body: bytes


class Close(Message, frozen=True):
    """Accept no more connections, close the idle ones, and each busy one after its answer. Answered by `Closed`."""


FromCore: TypeAlias = Start | Failures | Forwarded | Close


# --- from a front


class Listening(Message, frozen=True):
    """The front accepts connections."""


class Closed(Message, frozen=True):
    """The front accepts no more connections. Its process ends after its last answer."""


class Large(Message, frozen=True):
    """A request whose rows follow in parts; see `frames.Submitted`."""

    number: _Number
    model: int
    priority: int
    arrived_at: float
    deadline: float
    num_rows: Annotated[int, msgspec.Meta(ge=1, lt=2**32)]


class Withdrawn(Message, frozen=True):
    """Requests whose callers have left."""

    numbers: list[_Number]


class Report(Message, frozen=True):
    """What the front has counted since the last report, for the core's recorder.

    Attributes:
        answered: (model, outcome, seconds of each request).
        refused: (model, reason, how many).
        ended: (reason, how many connections).
        lag_s: how late the front's event loop ran.
        num_connections: open ones of now.
    """

    answered: list[tuple[str, str, list[float]]]
    refused: list[tuple[str, str, int]]
    ended: list[tuple[str, int]]
    lag_s: list[float]
    num_connections: int


class Forward(Message, frozen=True):
    """A request that is no prediction, whole, as ASGI has it. Answered by `Forwarded`."""

    number: _Number
    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    scheme: str
    http_version: str
    server: tuple[str, int | None] | None
    client: tuple[str, int] | None
    headers: _RawHeaders
    body: bytes


FromFront: TypeAlias = Listening | Closed | Large | Withdrawn | Report | Forward

FROM_CORE: msgspec.msgpack.Decoder[FromCore] = msgspec.msgpack.Decoder(FromCore)
FROM_FRONT: msgspec.msgpack.Decoder[FromFront] = msgspec.msgpack.Decoder(FromFront)

M = TypeVar("M")


def message_frame(message: Message) -> bytes:
    """The frame of a message. Raises ValueError where it is too long."""
    return frame(Kind.MESSAGE, (msgspec.msgpack.encode(message),))


def read_message(decoder: msgspec.msgpack.Decoder[M], payload: memoryview) -> M:
    """The message of a frame. Raises MalformedFrame."""
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedFrame(f"no message that was due: {error}") from error


def describe_model(model: ServedModel) -> Model:
    """A served model without the rows of its context."""
    fitted, context = model.fitted, model.definition.context
    encoder = getattr(fitted, "encoder", None)
    assert isinstance(encoder, RowEncoder), "this is a bug: a fitted context without its row encoder"
    codings = [describe_coding(coding) for coding in encoder.codings or ()]
    bare = replace(context, cells={}, target=(), num_hidden_rows=context.num_rows)
    # The example may hold integers beyond MessagePack's 64 bits, and the core describes the model to callers.
    definition = replace(model.definition, context=bare, example=None)
    described = Fitted(0, fitted.classes, fitted.backend, codings, (0, len(codings)))
    return Model(definition, described, model.timeout_s)


def restore_model(model: Model) -> ServedModel:
    """The served model that was described; its context shows no rows. Raises ValueError where its parts disagree."""
    columns = model.definition.context.columns
    rows = np.empty((0, len(model.fitted.codings)))
    return ServedModel(model.definition, make_handle(model.fitted, columns, rows), model.timeout_s)
