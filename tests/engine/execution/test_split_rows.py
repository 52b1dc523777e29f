"""Divided among threads, rows are answered as they are together, in order, each part by one of torch's threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.execution.split_rows import MIN_PART_ROWS, DividedCompute, torch_threads


class Watched:
    """Sums over the width, and notes who asked; the first calls wait for each other if told to."""

    def __init__(self, meeting: threading.Barrier | None = None) -> None:
        self.calls: list[tuple[str, int, int]] = []  # thread, torch's threads in it, rows
        self.meeting = meeting

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        self.calls.append((threading.current_thread().name, torch.get_num_threads(), inputs[0].shape[1]))
        if self.meeting and threading.current_thread() is not threading.main_thread():
            self.meeting.wait(timeout=30)
        return torch.cat([x.sum(-1) for x in inputs])


@pytest.fixture
def three_threads() -> Iterator[None]:
    with torch_threads(3):
        yield


@given(st.integers(1, 60), st.integers(2, 4))
def test_rows_keep_their_order(num_rows: int, num_threads: int) -> None:
    inputs = [torch.randn(members, num_rows, 5) for members in (3, 1)]
    divided = DividedCompute(Watched(), num_threads)
    for _ in range(2):  # the first call of a shape goes another way
        torch.testing.assert_close(divided(inputs), Watched()(inputs), rtol=0, atol=0)


@pytest.mark.usefixtures("three_threads")
def test_parts_are_computed_at_once_and_alone() -> None:
    watched = Watched(threading.Barrier(3))  # none passes before all three have come
    divided = DividedCompute(watched, 3)
    with torch_threads(1):
        divided([torch.randn(2, 32, 5)])
    before, parts = watched.calls[:-3], watched.calls[-3:]
    assert len({name for name, _, _ in parts}) == 3
    assert sorted(rows for _, _, rows in parts) == [10, 11, 11]
    assert {threads for _, threads, _ in watched.calls} == {1}
    assert {name for name, _, _ in before} == {threading.main_thread().name}, "what is recorded, by one thread"
    assert torch.get_num_threads() == 3, "the caller has its threads back"


@pytest.mark.usefixtures("three_threads")
def test_few_rows_are_not_divided() -> None:
    watched = Watched()
    divided = DividedCompute(watched, 3)
    divided([torch.randn(2, 2 * MIN_PART_ROWS - 1, 5)])
    assert watched.calls == [(threading.main_thread().name, 3, 2 * MIN_PART_ROWS - 1)]
    assert divided.num_torch_threads(2 * MIN_PART_ROWS - 1) == 3
    assert divided.num_torch_threads(2 * MIN_PART_ROWS) == 1


@pytest.mark.usefixtures("three_threads")
def test_an_error_waits_for_the_other_parts() -> None:
    class Failing(Watched):
        def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
            answer = super().__call__(inputs)
            if self.meeting and inputs[0][0, 0, 0] == 0:
                raise MemoryError("no room")
            return answer

    failing = Failing()
    divided = DividedCompute(failing, 3)
    rows = torch.arange(24.0)[None, :, None]
    divided([rows])
    failing.calls.clear()
    failing.meeting = threading.Barrier(3)
    with pytest.raises(MemoryError, match="no room"):
        divided([rows])
    assert len(failing.calls) == 3
    failing.meeting = None
    torch.testing.assert_close(divided([rows]), rows.sum(-1), rtol=0, atol=0)
