"""What is tried again after a failure."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from queue_harness import A, Request

from serve.batching import Slice
from serve.batching.fifo import count_rows
from serve.batching.recovery import WrongAnswer, smaller_parts
from serve.core.errors import DeviceLost, OutOfMemory

BATCHES = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(
    lambda sizes: [Slice(Request(A, size + 3), 2, 2 + size) for size in sizes]
)


@given(BATCHES, st.sampled_from([RuntimeError("x"), OutOfMemory("x")]))
def test_the_parts_are_the_batch_in_order(batch: list[Slice[Request]], error: Exception) -> None:
    parts = smaller_parts(batch, error)
    units = count_rows(batch) if isinstance(error, OutOfMemory) else len(batch)
    if units == 1:
        assert parts == []
        return
    assert len(parts) == 2
    assert all(parts)
    rows = [(id(piece.request), row) for part in parts for piece in part for row in range(piece.start, piece.stop)]
    assert rows == [(id(piece.request), row) for piece in batch for row in range(piece.start, piece.stop)]
    if isinstance(error, OutOfMemory):
        assert abs(count_rows(parts[0]) - count_rows(parts[1])) <= 1
    else:
        assert {id(piece.request) for piece in parts[0]}.isdisjoint(id(piece.request) for piece in parts[1])


@pytest.mark.parametrize("num_requests", [1, 5])
@pytest.mark.parametrize("error", [WrongAnswer("short"), DeviceLost("its process ended")])
def test_an_engine_that_is_broken_or_gone_is_not_tried_again(num_requests: int, error: Exception) -> None:
    assert smaller_parts([Slice(Request(A, 4), 0, 4)] * num_requests, error) == []
