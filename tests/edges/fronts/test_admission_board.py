"""The board: what the core writes, every front reads; a copy that is half written is not believed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from predictor_harness import make, request_of

from serve.batching.snapshot import Load, count_numbers
from serve.core import QueryTable
from serve.edges.fronts.admission_board import Board, BoardReader
from serve.engine.fake import FakeContext


class Numbers(Load):
    """A state that the test sets."""

    def __init__(self) -> None:
        self.value = 0.0
        self.idle = True
        self.num_copies = 0

    @property
    def is_idle(self) -> bool:
        return self.idle

    def numbers(self, contexts: object) -> list[float]:  # noqa: ARG002
        self.num_copies += 1
        return [self.value] * count_numbers(1)


@pytest.fixture
def load() -> Numbers:
    return Numbers()


@pytest.fixture
def board(load: Numbers) -> Iterator[Board]:
    board = Board(load, [FakeContext()])
    yield board
    board.close()


def test_a_reader_has_each_copy_once(load: Numbers, board: Board) -> None:
    reader = BoardReader(board.fd, 1)
    assert reader.changed() == (0.0,) * count_numbers(1)
    assert reader.changed() is None
    load.value = 2.5
    board.write()
    assert reader.changed() == (2.5,) * count_numbers(1)
    assert BoardReader(board.fd, 1).changed() == (2.5,) * count_numbers(1)


def test_a_copy_that_is_half_written_is_not_believed(load: Numbers, board: Board) -> None:
    reader = BoardReader(board.fd, 1)
    reader.changed()
    load.value = 2.5
    board.write()
    whole = board._memory[:]
    for place in (0, 8, 16, len(whole) - 1):
        board._memory[place] ^= 0xFF
        assert reader.changed() is None, f"byte {place} is not there yet"
        board._memory[:] = whole
    assert reader.changed() == (2.5,) * count_numbers(1)


async def test_it_is_written_until_nothing_is_ongoing(load: Numbers, board: Board) -> None:
    reader = BoardReader(board.fd, 1)
    load.value, load.idle = 1.0, False
    board.touch()
    board.touch()
    async with asyncio.timeout(20):
        while load.num_copies < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
    load.value, load.idle = 7.0, True
    async with asyncio.timeout(20):
        while board._timer is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert reader.changed() == (7.0,) * count_numbers(1)


async def test_it_shows_the_requests_of_a_replica() -> None:
    predictor = make()
    await predictor.start()
    board = Board(predictor.load, [model.fitted for model in predictor.models()])
    reader = BoardReader(board.fd, 1)
    assert (reader.changed() or ())[:3] == (False, 0, 0)
    table = QueryTable.from_records([{"amount": 1.0}, {"amount": 2.0}])
    admitted = predictor.admit(request_of(predictor, table), lambda _: None)
    board.write()
    assert (reader.changed() or ())[:3] == (False, 1, 2)
    predictor.withdraw(admitted)
    board.write()
    assert (reader.changed() or ())[:3] == (False, 0, 0)
    board.close()
    await predictor.close()
