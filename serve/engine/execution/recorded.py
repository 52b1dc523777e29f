"""A forward recorded per row bucket: the same operations, without Python between them.

A forward for a few rows is bound by the price of its launches, not by its arithmetic. Recordings are made the first
time a shape is met, which is during warm-up (every bucket runs before a replica is ready, the largest first). What is
recorded must not ask the device for a value: see `serve.engine.forward`.

On a GPU it is a CUDA graph, which fixes addresses as well as shapes: inputs are copied into the buffers that it was
made with, its result is read before the next replay, and what it allocates comes from a pool, into which the smaller
buckets fit after the largest. On a CPU it is a trace, run by torch's interpreter of such graphs; the kernels are those
of the plain call, so its answers are too, to the bit.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

Compute = Callable[[Sequence[torch.Tensor]], torch.Tensor]

_TRACED_S = 0.1
"""Of the processor, for a plain call: from there on no trace is made, which would save less than a tenth of the call,
and costs several."""

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


class TracedCompute:
    """`compute` on a CPU, traced once for every combination of input shapes for which it is quick.

    Of one call of the demo's forward it takes a quarter at one row, a tenth at 32 (one core).
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._traces: dict[tuple[torch.Size, ...], Callable[..., torch.Tensor]] = {}

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        shapes = tuple(given.shape for given in inputs)
        if shapes not in self._traces:
            self._traces[shapes] = self._trace(inputs) if self._is_quick(inputs) else self._call
        # The optimizer fuses nothing on a CPU, and would take two slow calls of each shape to find that out.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self._traces[shapes](*inputs)

    def _is_quick(self, inputs: Sequence[torch.Tensor]) -> bool:
        """By a second call if the first, which may pay for what happens only once, was not. Other processes' use of the
        processor does not count."""
        for _ in range(2):
            started = time.process_time()
            self._compute(inputs)
            spent = time.process_time() - started
            if spent < _TRACED_S or spent > 10 * _TRACED_S:
                break
        return spent < _TRACED_S

    def _call(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._compute(inputs)

    def _trace(self, inputs: Sequence[torch.Tensor]) -> Callable[..., torch.Tensor]:
        with warnings.catch_warnings():
            # Numbers that followed from shapes become constants, as they should.
            warnings.simplefilter("ignore")
            try:
                traced: Any = torch.jit.trace(self._call, tuple(inputs), check_trace=False)  # type: ignore[no-untyped-call]
            except RuntimeError:
                # A trace cannot hold weights that are packed for oneDNN. Whatever else it is, the plain call meets it.
                return self._call
        return cast(Callable[..., torch.Tensor], traced)
