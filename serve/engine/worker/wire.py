"""Frames between a replica and its worker: how a message and its matrix become bytes.

Theory of operation
-------------------
Each process holds one end of a connected stream socket. The replica sends calls, and the worker answers them in their
order. Where the engine allows two batches in flight, the replica may send a second `Predict` before it reads the answer
to the first. A call and an answer are one frame each:

    offset       size         content
    0            4            `MAGIC`, which also names the version of this format
    4            4            length of the header in bytes: unsigned, little-endian
    8            8            length of the body in bytes: unsigned, little-endian
    16           header       one message of `messages.py` in MessagePack; its field `type` names the class
    16 + header  body         the message's matrix: float64, little-endian, row by row; empty for a message without one

The message's `shape` gives the matrix's rows and columns; the body has exactly 8 x rows x columns bytes. NaN (with its
bits) and infinities cross unchanged. The rows of a large batch are not in the frame; see `shared_rows.py`.

Limits. The receiver states the longest header and body that it accepts before it reads. It refuses a longer one on
sight of the first 16 bytes. A header takes memory as its bytes arrive, never by the length that a frame claims. A body
is read into one array of its claimed length, which is at most the stated one.

Trust. The worker opens fitted estimators, which are pickles, so the replica treats its answers as data from a process
that may be hostile. Nothing in a frame is code, and nothing is unpickled. A frame that breaks a rule raises
MalformedFrame. The bytes behind it have no meaning, so the receiver has to give the connection up. A connection that
ends, between two frames or within one, raises EOFError.
"""

from __future__ import annotations

import socket
import struct
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from serve.core import Matrix
from serve.engine.worker.messages import Answered, Call, Failure, Fitted, Message, Shape, Started

MAGIC = b"TPW1"
MAX_HEADER_BYTES = 2**32 - 1
"""The format allows no longer header."""
MAX_ANSWER_HEADER_BYTES = 2**30
"""Of a worker: the categories of a text column with a million distinct values, and more."""

_PREFIX = struct.Struct("<4sIQ")
_STEP_BYTES = 2**20
"""Most of a header that is read at a time, so that memory grows with what has arrived."""
_FLOAT = np.dtype("<f8")

M = TypeVar("M")
Decoder: TypeAlias = msgspec.msgpack.Decoder[M]

CALL: Decoder[Call] = msgspec.msgpack.Decoder(Call)
STARTED: Decoder[Started | Failure] = msgspec.msgpack.Decoder(Started | Failure)
FITTED: Decoder[Fitted | Failure] = msgspec.msgpack.Decoder(Fitted | Failure)
ANSWERED: Decoder[Answered | Failure] = msgspec.msgpack.Decoder(Answered | Failure)
"""Each reads one call, or the answers that one kind of call can have."""


class MalformedFrame(Exception):
    """The bytes received are no frame of this format, or their message is none that was due."""


def encode(message: Message, matrix: Matrix | None = None) -> bytes:
    """The frame of a message; `matrix` has the message's `shape`.

    Raises:
        TypeError, ValueError, OverflowError: a value has no MessagePack, or the header is beyond `MAX_HEADER_BYTES`.
    """
    header = msgspec.msgpack.encode(message)
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"the message takes {len(header)} bytes, more than a frame's {MAX_HEADER_BYTES}")
    body = b"" if matrix is None else np.ascontiguousarray(matrix, dtype=_FLOAT).tobytes()
    return b"".join((_PREFIX.pack(MAGIC, len(header), len(body)), header, body))


def receive(
    connection: socket.socket, decoder: Decoder[M], *, max_header_bytes: int, max_body_bytes: int
) -> tuple[M, Matrix]:
    """The next message, and its matrix: writable, float64 [rows, columns]; [0, 0] for a message without one.

    Raises:
        MalformedFrame: the bytes are no frame, are longer than the limits, or the decoder does not know the message.
        EOFError: the connection ended.
        OSError: the connection failed.
    """
    magic, header_bytes, body_bytes = _PREFIX.unpack(_read(connection, _PREFIX.size))
    if magic != MAGIC:
        raise MalformedFrame(f"it begins with {magic!r} in place of {MAGIC!r}")
    if header_bytes > max_header_bytes:
        raise MalformedFrame(f"it claims a header of {header_bytes} bytes; the limit is {max_header_bytes}")
    if body_bytes > max_body_bytes:
        raise MalformedFrame(f"it claims a body of {body_bytes} bytes; the limit is {max_body_bytes}")
    message = _decode(decoder, _read(connection, header_bytes))
    shape: Shape = getattr(message, "shape", (0, 0))
    if _FLOAT.itemsize * shape[0] * shape[1] != body_bytes:
        raise MalformedFrame(f"its body has {body_bytes} bytes, which is no float64 matrix of shape {shape}")
    return message, _read_matrix(connection, shape)


def _decode(decoder: Decoder[M], header: bytearray) -> M:
    try:
        return decoder.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
        raise MalformedFrame(f"its header is no message that was due: {error}") from error


def _read_matrix(connection: socket.socket, shape: Shape) -> Matrix:
    # Into one array: 0.8 MB take 0.15 ms, and 2 ms in a buffer that grows by what arrives.
    data = np.empty(_FLOAT.itemsize * shape[0] * shape[1], dtype=np.uint8)
    rest = data.data
    while rest:
        num_bytes = connection.recv_into(rest)
        if not num_bytes:
            raise EOFError
        rest = rest[num_bytes:]
    return data.view(_FLOAT).reshape(shape)


def _read(connection: socket.socket, num_bytes: int) -> bytearray:
    data = bytearray()
    while len(data) < num_bytes:
        part = connection.recv(min(num_bytes - len(data), _STEP_BYTES))
        if not part:
            raise EOFError
        data += part
    return data
