"""The rows of one call divided among threads on a CPU; each thread computes its part alone.

torch's own threads divide every operation and wait for each other behind each one. Most operations of a small network
are too short for that. 32 rows of the demo model take 25 ms by one thread, 17.5 by two of torch's threads, and 14.5 by
two threads that wait for each other once, at the end. For few rows each thread would read all weights for too little
work, and the operations of a large network are long enough for torch's threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch

from serve.engine.execution.recorded import Compute

MIN_PART_ROWS = 8
"""Parts of fewer rows gain nothing: 8 rows of the demo model take 6.9 ms in two parts, 6.5 by torch's own threads."""


class DividedCompute:
    """`compute` with its rows divided among up to `num_threads` threads.

    Several threads call `compute` at once. Only the first call of a shape, which may record it, runs alone.
    """

    def __init__(self, compute: Compute, num_threads: int) -> None:
        self._compute, self._num_threads = compute, num_threads
        self._pool = ThreadPoolExecutor(num_threads, "rows", initializer=torch.set_num_threads, initargs=(1,))
        self._met: set[tuple[torch.Size, ...]] = set()

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The parts' results, with the rows in order. An error is raised once all parts have ended."""
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
        """torch threads for the calling thread: 1 where rows are divided, as more would take the parts' cores."""
        return self._num_threads if self._count_parts(num_rows) < 2 else 1

    def _count_parts(self, num_rows: int) -> int:
        return min(self._num_threads, num_rows // MIN_PART_ROWS)

    def _compute_part(self, part: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            return self._compute([given.contiguous() for given in part])


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch's operations in this thread run by `number` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
