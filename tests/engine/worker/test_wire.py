"""Frames: every message crosses whole, and no bytes do harm."""

from __future__ import annotations

import dataclasses
import math
import socket
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve.core import Column, ColumnKind, Context, EnsembleOptions, Matrix, ModelDefinition, Task
from serve.engine.worker import wire
from serve.engine.worker.messages import (
    Answered,
    ColumnCoding,
    Failed,
    FailedInput,
    FailedOverload,
    Fit,
    Fitted,
    Message,
    Predict,
    Reference,
    SharedSlot,
    Start,
    Started,
)

LIMIT = 2**20
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ANY_FLOAT = st.floats(width=64)
LENGTHS = st.integers(0, 2**40)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | ANY_FLOAT | TEXT
MATRICES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6), elements=ANY_FLOAT)


@st.composite
def definitions(draw: st.DrawFn) -> ModelDefinition:
    num_rows = draw(st.integers(0, 4))
    names = draw(st.lists(TEXT, unique=True, max_size=3))
    task = draw(st.sampled_from(Task))
    label = TEXT if task is Task.CLASSIFICATION else ANY_FLOAT
    context = Context(
        task,
        tuple(Column(name, draw(st.sampled_from(ColumnKind)), draw(TEXT)) for name in names),
        {name: draw(st.lists(SCALARS, min_size=num_rows, max_size=num_rows)) for name in names},
        draw(st.lists(label, min_size=num_rows, max_size=num_rows)),
        draw(st.none() | st.dictionaries(TEXT, ANY_FLOAT, max_size=2)),
        draw(st.integers(0, 2**40)),
    )
    options = EnsembleOptions(draw(st.integers(1, 64)), draw(st.integers(0, 2**32)), draw(st.none() | ANY_FLOAT))
    return ModelDefinition(
        draw(TEXT), draw(TEXT), context, draw(TEXT), draw(TEXT), draw(TEXT), options,
        draw(st.none() | st.dictionaries(TEXT, SCALARS, max_size=2)), draw(TEXT),
        draw(st.none() | ANY_FLOAT), draw(st.none() | TEXT),
    )  # fmt: skip


@st.composite
def codings(draw: st.DrawFn) -> ColumnCoding:
    values = draw(st.none() | st.lists(st.none() | TEXT | ANY_FLOAT, max_size=5))
    codes = None if values is None else [draw(ANY_FLOAT) for _ in values]
    numbers = draw(ANY_FLOAT), draw(ANY_FLOAT), draw(st.none() | ANY_FLOAT)
    return ColumnCoding(values, codes, *numbers, draw(st.booleans()))


@st.composite
def frames(draw: st.DrawFn) -> tuple[Any, Message, Matrix | None]:
    """A decoder, a message that it reads, and the message's matrix."""
    matrix = draw(MATRICES)
    shape = (matrix.shape[0], matrix.shape[1])
    number = draw(st.integers(0, 2**63))
    failures = st.one_of(
        st.builds(Failed, TEXT, TEXT),
        st.builds(FailedInput, TEXT, TEXT, st.none() | st.integers(0, 2**40), st.none() | TEXT),
        st.builds(FailedOverload, TEXT, ANY_FLOAT, TEXT),
    )
    with_matrix = st.sampled_from([
        (wire.CALL, Predict(number, shape)),
        (wire.CALL, Predict(number, shape, SharedSlot(draw(st.integers(0, 1)), draw(st.tuples(LENGTHS, LENGTHS))))),
        (wire.CALL, Reference(number, shape)),
        (wire.ANSWERED, Answered(shape, draw(st.none() | TEXT), draw(st.floats(0)))),
        (wire.FITTED, Fitted(number, tuple(draw(st.lists(TEXT))), draw(TEXT), draw(st.lists(codings())), shape)),
    ])  # fmt: skip
    without = st.one_of(
        st.tuples(st.just(wire.CALL), st.builds(Start, TEXT, st.integers(1, 2**31))),
        st.tuples(st.just(wire.CALL), st.builds(Fit, definitions())),
        st.tuples(st.just(wire.STARTED), st.builds(Started, st.integers(1, 2))),
        st.tuples(st.sampled_from([wire.STARTED, wire.FITTED, wire.ANSWERED]), failures),
    )
    if draw(st.booleans()):
        return *draw(with_matrix), matrix
    return *draw(without), None


def receive(decoder: Any, data: bytes, **limits: int) -> tuple[Any, Matrix]:
    """What a receiver makes of these bytes, after which the connection ends."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)
        return wire.receive(here, decoder, **{"max_header_bytes": LIMIT, "max_body_bytes": LIMIT, **limits})


def same(one: Any, other: Any) -> bool:
    """Equal, NaN to NaN and -0.0 to -0.0; a list and a tuple of the same items are equal."""
    if isinstance(one, float) and isinstance(other, float):
        return repr(one) == repr(other)
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, msgspec.Struct) and type(one) is type(other):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and bool(one == other)


@given(frames())
def test_a_message_and_its_matrix_cross_whole(given_frame: tuple[Any, Message, Matrix | None]) -> None:
    decoder, message, matrix = given_frame
    received, body = receive(decoder, wire.encode(message, matrix))
    assert same(received, message)
    expected = np.empty((0, 0)) if matrix is None else matrix
    assert body.shape == expected.shape
    assert body.dtype == np.float64
    assert body.flags.writeable
    assert body.tobytes() == np.ascontiguousarray(expected).tobytes()  # NaN with its bits


def test_a_matrix_crosses_from_any_memory_layout() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    _, body = receive(wire.ANSWERED, wire.encode(Answered((2, 3)), matrix))  # type: ignore[arg-type]
    np.testing.assert_array_equal(body, matrix)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: wire.MAGIC + data))
def test_no_bytes_do_worse_than_a_malformed_frame(data: bytes) -> None:
    with pytest.raises((wire.MalformedFrame, EOFError)):
        receive(wire.FITTED, data)


@given(frames(), st.data())
def test_a_changed_frame_is_malformed_or_another_message(
    given_frame: tuple[Any, Message, Matrix | None], data: st.DataObject
) -> None:
    decoder, message, matrix = given_frame
    changed = bytearray(wire.encode(message, matrix))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        receive(decoder, bytes(changed))
    except (wire.MalformedFrame, EOFError):
        return


@given(frames(), st.data())
def test_a_frame_that_ends_early_is_the_end(
    given_frame: tuple[Any, Message, Matrix | None], data: st.DataObject
) -> None:
    decoder, message, matrix = given_frame
    whole = wire.encode(message, matrix)
    with pytest.raises(EOFError):
        receive(decoder, whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_two_frames_are_read_one_by_one() -> None:
    here, there = socket.socketpair()
    with here, there:
        for number in range(2):
            there.sendall(wire.encode(Predict(number, (1, 1)), np.full((1, 1), float(number))))
        for number in range(2):
            call, rows = wire.receive(here, wire.CALL, max_header_bytes=LIMIT, max_body_bytes=LIMIT)
            assert call == Predict(number, (1, 1))
            np.testing.assert_array_equal(rows, [[number]])


@pytest.fixture
def frame() -> bytes:
    return wire.encode(Answered((2, 2)), np.full((2, 2), math.inf))


def test_the_limits_are_the_receivers(frame: bytes) -> None:
    header = len(frame) - 16 - 32
    receive(wire.ANSWERED, frame, max_header_bytes=header, max_body_bytes=32)
    with pytest.raises(wire.MalformedFrame, match=f"header of {header} bytes; the limit is {header - 1}"):
        receive(wire.ANSWERED, frame, max_header_bytes=header - 1, max_body_bytes=32)
    with pytest.raises(wire.MalformedFrame, match="body of 32 bytes; the limit is 31"):
        receive(wire.ANSWERED, frame, max_header_bytes=header, max_body_bytes=31)


def test_a_shape_beyond_any_memory_is_malformed() -> None:
    for shape in ((2**41, 0), (0, 2**62), (-1, -1), (2**40, 2**40)):
        with pytest.raises(wire.MalformedFrame):
            receive(wire.ANSWERED, wire.encode(Answered(shape)))


@pytest.mark.parametrize("cell", [2**64, -(2**63) - 1, np.float64(1.0), "\ud800"])
def test_a_value_that_messagepack_lacks_is_refused_at_the_sender(cell: Any) -> None:
    context = Context(Task.REGRESSION, (Column("x", ColumnKind.NUMBER),), {"x": [cell]}, [0.0])
    with pytest.raises((TypeError, ValueError, OverflowError)):
        wire.encode(Fit(ModelDefinition("m", "1", context, "", "", "")))
