"""Frames between the core and a front: many requests, or many answers, as one run of bytes.

Theory of operation
-------------------
Core and front hold the two ends of a connected stream socket. Each sends frames when it likes:

    offset  size     content
    0       4        length of the payload in bytes: unsigned, little-endian, without the padding
    4       2        what the payload is (`Kind`)
    6       2        `MAGIC`, which also names the version of this format
    8       payload  padded with zeros to a multiple of 8, so that numbers are aligned

| kind | payload |
|---|---|
| SUBMITTED | count (8 bytes), a record of 32 bytes for each request, then their rows: float64, row by row |
| ANSWERS | likewise: records of answers, then their outputs |
| PART | number of a large request (8 bytes), then the next of its rows |
| MESSAGE | a message of `messages.py` in MessagePack |

NaN (with its bits) and infinities cross unchanged. Times are seconds of `time.monotonic`, one clock for all processes.

Limits. A frame has at most `MAX_FRAME_BYTES`; a longer one is refused on sight of its first 8 bytes. Memory grows with
the bytes that have arrived. Rows of large requests cross in parts of `PART_BYTES`, with other frames between.

Trust. Both ends are this program, but a front reads what strangers send. So nothing in a frame is code, every length is
checked against the bytes that are there, and a frame that breaks a rule raises MalformedFrame. The receiver then gives
the connection up.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from serve.core import Matrix

MAGIC = 0x4654
MAX_FRAME_BYTES = 2**30
PART_BYTES = 2**18

_PREFIX = struct.Struct("<IHH")
_COUNT = struct.Struct("<Q")
_SUBMITTED = struct.Struct("<IHBxIIdd")
_ANSWER = struct.Struct("<IIIIdd")
_FLOAT = np.dtype("<f8")
_ALIGN = 8

Buffer: TypeAlias = bytes | memoryview


class Kind(enum.IntEnum):
    """What a payload is."""

    SUBMITTED = 1
    ANSWERS = 2
    PART = 3
    MESSAGE = 4


class MalformedFrame(Exception):
    """The bytes received are no frame of this format, or one that was not due."""


class Submitted(NamedTuple):
    """A request of a front.

    Attributes:
        number: names the request on its connection until it has its outcome.
        model: place of its model in `messages.Start.models`.
        priority: place of its priority in `Priority`.
        rows: float64 [rows, features], encoded.
    """

    number: int
    model: int
    priority: int
    arrived_at: float
    deadline: float
    rows: Matrix


class Answer(NamedTuple):
    """The answer to the request of this number; see `core.Prediction` for the rest."""

    number: int
    batch_rows: int
    queue_ms: float
    compute_ms: float
    outputs: Matrix


def frame(kind: Kind, parts: Sequence[Buffer]) -> bytes:
    """The frame of a payload in parts. Raises ValueError where it is too long."""
    length = sum(map(len, parts))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
    return b"".join((_PREFIX.pack(length, kind, MAGIC), *parts, bytes(-length % _ALIGN)))


def submitted_frame(requests: Sequence[Submitted]) -> bytes:
    """One frame of all these requests."""
    parts: list[Buffer] = [_COUNT.pack(len(requests))]
    pack = _SUBMITTED.pack
    for number, model, priority, arrived_at, deadline, rows in requests:
        parts.append(pack(number, model, priority, rows.shape[0], rows.shape[1], arrived_at, deadline))
    parts += [rows.tobytes() for *_, rows in requests]
    return frame(Kind.SUBMITTED, parts)


def read_submitted(payload: memoryview) -> Iterator[Submitted]:
    """The requests of a frame; their rows are parts of its memory, and read-only. Raises MalformedFrame."""
    count, numbers = _split(payload, _SUBMITTED.size)
    at, end = 0, len(numbers)
    for record in _SUBMITTED.iter_unpack(payload[_COUNT.size : _COUNT.size + count * _SUBMITTED.size]):
        number, model, priority, num_rows, num_columns, arrived_at, deadline = record
        stop = at + num_rows * num_columns
        if stop > end:
            raise MalformedFrame("its rows are longer than the frame")
        rows = numbers[at:stop].reshape(num_rows, num_columns)
        at = stop
        yield Submitted(number, model, priority, arrived_at, deadline, rows)
    if at != end:
        raise MalformedFrame("the frame is longer than its rows")


def answers_frame(answers: Sequence[Answer]) -> bytes:
    """One frame of all these answers."""
    parts: list[Buffer] = [_COUNT.pack(len(answers))]
    pack = _ANSWER.pack
    for number, batch_rows, queue_ms, compute_ms, outputs in answers:
        parts.append(pack(number, outputs.shape[0], outputs.shape[1], batch_rows, queue_ms, compute_ms))
    parts += [outputs.tobytes() for *_, outputs in answers]
    return frame(Kind.ANSWERS, parts)


def read_answers(payload: memoryview) -> Iterator[Answer]:
    """The answers of a frame; their outputs are parts of its memory, and read-only. Raises MalformedFrame."""
    count, numbers = _split(payload, _ANSWER.size)
    at, end = 0, len(numbers)
    for record in _ANSWER.iter_unpack(payload[_COUNT.size : _COUNT.size + count * _ANSWER.size]):
        number, num_rows, num_outputs, batch_rows, queue_ms, compute_ms = record
        stop = at + num_rows * num_outputs
        if stop > end:
            raise MalformedFrame("its outputs are longer than the frame")
        outputs = numbers[at:stop].reshape(num_rows, num_outputs)
        at = stop
        yield Answer(number, batch_rows, queue_ms, compute_ms, outputs)
    if at != end:
        raise MalformedFrame("the frame is longer than its outputs")


def part_frame(number: int, part: Buffer) -> bytes:
    """The next bytes of a large request's rows."""
    return frame(Kind.PART, (_COUNT.pack(number), part))


def read_part(payload: memoryview) -> tuple[int, memoryview]:
    """(number of the request, bytes of its rows). Raises MalformedFrame."""
    if len(payload) < _COUNT.size:
        raise MalformedFrame("a part without the number of its request")
    return _COUNT.unpack_from(payload)[0], payload[_COUNT.size :]


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """(kind, payload) of each frame that these bytes complete. Raises MalformedFrame; then feed no more."""
        if self._begun:
            self._begun += data
            if len(self._begun) < _PREFIX.size or len(self._begun) < _whole(self._begun, 0)[1]:
                return
            data, self._begun = bytes(self._begun), bytearray()
        view, at, end = memoryview(data), 0, len(data)
        while end - at >= _PREFIX.size:
            (length, kind), size = _whole(data, at)
            if end - at < size:
                break
            yield kind, view[at + _PREFIX.size : at + _PREFIX.size + length]
            at += size
        self._begun += view[at:]


def _whole(data: bytes | bytearray, at: int) -> tuple[tuple[int, int], int]:
    """((length of the payload, kind), bytes of the whole frame) of the frame that begins at a place."""
    length, kind, magic = _PREFIX.unpack_from(data, at)
    if magic != MAGIC:
        raise MalformedFrame(f"it has {magic:#x} in place of {MAGIC:#x}")
    if length > MAX_FRAME_BYTES:
        raise MalformedFrame(f"it claims {length} bytes; the limit is {MAX_FRAME_BYTES}")
    return (length, kind), _PREFIX.size + length + -length % _ALIGN


def _split(payload: memoryview, record_bytes: int) -> tuple[int, Matrix]:
    """(count of the records, all numbers behind them)."""
    if len(payload) < _COUNT.size or len(payload) % _ALIGN:
        raise MalformedFrame(f"{len(payload)} bytes hold no records and numbers")
    (count,) = _COUNT.unpack_from(payload)
    if _COUNT.size + count * record_bytes > len(payload):
        raise MalformedFrame(f"it claims {count} records in {len(payload)} bytes")
    return count, np.frombuffer(payload, _FLOAT, offset=_COUNT.size + count * record_bytes)
