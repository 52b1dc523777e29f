"""The memory of large batches: two processes see one memory, whose size neither can change."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from serve.engine.worker.messages import MAX_IN_FLIGHT
from serve.engine.worker.shared_rows import SLOT_BYTES, SharedRows


@pytest.fixture
def fd() -> Iterator[int]:
    fd = SharedRows.make_file()
    yield fd
    os.close(fd)


def test_what_one_writes_the_other_reads(fd: int) -> None:
    here, there = SharedRows(fd), SharedRows(fd)
    matrices = [np.full((3, 2), float(number)) for number in range(MAX_IN_FLIGHT)]
    for number, matrix in enumerate(matrices):
        here.slot(number, (3, 2))[:] = matrix
    for number, matrix in enumerate(matrices):
        np.testing.assert_array_equal(there.slot(number, (3, 2)), matrix)


def test_a_slot_is_full_to_the_last_number(fd: int) -> None:
    shared, shape = SharedRows(fd), (SLOT_BYTES // 16, 2)
    for number in range(MAX_IN_FLIGHT):
        shared.slot(number, shape)[[0, -1]] = number
    for number in range(MAX_IN_FLIGHT):
        np.testing.assert_array_equal(shared.slot(number, shape)[[0, -1]], number)
    with pytest.raises(ValueError, match="reshape"):
        shared.slot(0, (SLOT_BYTES // 8 + 1, 1))


def test_a_write_beyond_the_file_is_impossible(fd: int) -> None:
    """A process that writes behind the end of a mapped file is ended by a signal."""
    for size in (0, 2 * MAX_IN_FLIGHT * SLOT_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)


def test_only_what_was_written_takes_memory(fd: int) -> None:
    assert os.fstat(fd).st_blocks == 0
    SharedRows(fd).slot(1, (1_000, 8))[:] = 1.0
    assert os.fstat(fd).st_blocks * 512 < 2**20
