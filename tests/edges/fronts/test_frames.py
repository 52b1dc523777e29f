"""Frames: what is written is read, in any pieces; what breaks a rule is refused, and never anything else happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serve.edges.fronts import frames
from serve.edges.fronts.frames import (
    MAX_FRAME_BYTES,
    Answer,
    FrameReader,
    Kind,
    MalformedFrame,
    Submitted,
    answers_frame,
    frame,
    part_frame,
    read_answers,
    read_part,
    read_submitted,
    submitted_frame,
)

NUMBERS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0, 1e9) | st.just(math.inf)
MATRICES = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(allow_nan=True, width=64)
)
SUBMITTED = st.builds(Submitted, NUMBERS, st.integers(0, 65535), st.integers(0, 255), TIMES, TIMES, MATRICES)
ANSWERS = st.builds(Answer, NUMBERS, NUMBERS, TIMES, TIMES, MATRICES)


def payload_of(data: bytes) -> memoryview:
    [(_, payload)] = FrameReader().feed(data)
    return payload


def same(one: tuple, other: tuple) -> bool:
    """Equal, numbers bit by bit."""
    return one[:-1] == other[:-1] and one[-1].tobytes() == other[-1].tobytes() and one[-1].shape == other[-1].shape


@given(st.lists(SUBMITTED, max_size=6))
def test_requests_cross_unchanged(requests: list[Submitted]) -> None:
    read = list(read_submitted(payload_of(submitted_frame(requests))))
    assert len(read) == len(requests)
    assert all(same(one, other) for one, other in zip(read, requests, strict=True))
    assert all(one.rows.flags.aligned for one in read)


@given(st.lists(ANSWERS, max_size=6))
def test_answers_cross_unchanged(answers: list[Answer]) -> None:
    read = list(read_answers(payload_of(answers_frame(answers))))
    assert len(read) == len(answers)
    assert all(same(one, other) for one, other in zip(read, answers, strict=True))


@given(NUMBERS, st.binary(max_size=40))
def test_parts_cross_unchanged(number: int, part: bytes) -> None:
    read_number, read = read_part(payload_of(part_frame(number, part)))
    assert (read_number, bytes(read)) == (number, part)


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40)), max_size=8), st.data())
def test_frames_are_found_in_any_pieces(sent: list[tuple[Kind, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(kind, [payload]) for kind, payload in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader, found = FrameReader(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [(kind, bytes(payload)) for kind, payload in reader.feed(stream[start:stop])]
    assert found == sent


@given(st.binary(max_size=80))
def test_any_bytes_are_frames_or_malformed(data: bytes) -> None:
    try:
        for kind, payload in FrameReader().feed(data):
            assert isinstance(kind, int)
            assert len(payload) <= len(data)
    except MalformedFrame:
        pass


@given(st.lists(SUBMITTED, max_size=3), st.data())
def test_a_changed_payload_gives_requests_of_its_own_memory_or_is_malformed(
    requests: list[Submitted], data: st.DataObject
) -> None:
    changed = bytearray(payload_of(submitted_frame(requests)))
    for place in data.draw(st.lists(st.integers(0, len(changed) - 1), max_size=6)):
        changed[place] = data.draw(st.integers(0, 255))
    stop = data.draw(st.integers(0, len(changed)))
    for read in (read_submitted, read_answers):
        try:
            numbers = sum(record[-1].size for record in read(memoryview(bytes(changed[:stop]))))
        except MalformedFrame:
            continue
        assert 8 * numbers <= stop


def test_a_frame_that_claims_too_much_is_refused_on_sight() -> None:
    with pytest.raises(MalformedFrame, match="the limit is"):
        list(FrameReader().feed(frames._PREFIX.pack(MAX_FRAME_BYTES + 1, Kind.MESSAGE, frames.MAGIC)))
    with pytest.raises(MalformedFrame, match="in place of"):
        list(FrameReader().feed(b"GET / HTTP/1.1\r\n\r\n"))


def test_a_frame_that_would_be_too_long_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 16)
    with pytest.raises(ValueError, match="a frame of 17 bytes"):
        frame(Kind.MESSAGE, [bytes(17)])
