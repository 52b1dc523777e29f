"""The rows of one call divided among threads, each of which computes its part alone, on a CPU.

torch's own threads divide every operation and wait for each other behind each. Of a small network's operations most are
too short for that: the demo's 32 rows take one thread 25 ms, two of that kind 17.5, and two that meet once, at the end,
14.5. Of few rows each thread would read all weights for too little, and a large network's operations are long enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch

from serve.engine.execution.recorded import Compute

MIN_PART_ROWS = 8
"""Parts of fewer rows gain nothing: 8 rows of the demo take 6.9 ms in two, 6.5 by torch's own threads."""


class DividedCompute:
    """`compute`, of inputs [members, rows, width] to [members, rows, ...], by up to `num_threads` threads.

    `compute` is called by several threads at once, but for the first call of a shape, which may record it.
    """

    def __init__(self, compute: Compute, num_threads: int) -> None:
        self._compute, self._num_threads = compute, num_threads
        self._pool = ThreadPoolExecutor(num_threads, "rows", initializer=torch.set_num_threads, initargs=(1,))
        self._met: set[tuple[torch.Size, ...]] = set()

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The parts' results, rows in their order; an error is raised when all parts have ended."""
        num_parts = self._count_parts(inputs[0].shape[1])
        if num_parts < 2:
            return self._compute(inputs)
        parts = list(zip(*(torch.tensor_split(given, num_parts, dim=1) for given in inputs), strict=True))
        for part in parts:
            shapes = tuple(given.shape for given in part)
            if shapes not in self._met:
                self._compute_part(part)
                self._met.add(shapes)
        futures = [self._pool.submit(self._compute_part, part) for part in parts]
        wait(futures)
        return torch.cat([future.result() for future in futures], dim=1)

    def num_torch_threads(self, num_rows: int) -> int:
        """How many of torch's threads the caller should have: one that waits in vain would have a part's core."""
        return self._num_threads if self._count_parts(num_rows) < 2 else 1

    def _count_parts(self, num_rows: int) -> int:
        return min(self._num_threads, num_rows // MIN_PART_ROWS)

    def _compute_part(self, part: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            return self._compute([given.contiguous() for given in part])


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch's operations in this thread by so many; what it calls takes as many for its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
