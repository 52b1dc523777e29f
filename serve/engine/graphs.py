"""CUDA graphs: what hundreds of small kernels compute for a row bucket, launched as one.

A forward for a few rows is bound by the price of its launches, not by its arithmetic. A recording fixes shapes and
addresses: inputs are copied into the buffers that it was made with, and its result is read before the next replay.
Recordings are made the first time a shape is met, which is during warm-up (every bucket runs before a replica is
ready, the largest first, so that the smaller ones fit into the same memory pool).

What is recorded must not ask the device for a value, nor allocate from outside the pool: see `serve.engine.forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Compute = Callable[[Sequence[torch.Tensor]], torch.Tensor]

_WARM_UPS = 3
"""Runs before a recording: cuBLAS and the allocator make their choices in the first ones."""


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor

    def replay(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output


class RecordedCompute:
    """`compute` on a GPU, recorded once for every combination of input shapes."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}
        self._pool: Any = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The result for these inputs; it stays valid until the next call with the same shapes."""
        shapes = tuple(given.shape for given in inputs)
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(inputs)
        return self._recordings[shapes].replay(inputs)

    def _record(self, inputs: Sequence[torch.Tensor]) -> _Recording:
        static = tuple(given.clone() for given in inputs)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._compute(static)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._compute(static)
        self._pool = graph.pool()
        return _Recording(graph, static, output)
