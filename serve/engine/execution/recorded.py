"""A forward pass recorded once per row bucket: the same operations, without Python between them.

The time of a forward pass for a few rows is the time of its launches, not of its arithmetic. A recording is made when a
shape first appears, which is during warm-up: every bucket runs before a replica is ready, the largest first. A recorded
pass must not ask the device for a value; see `serve.engine.forward`.

On a GPU the recording is a CUDA graph, which fixes addresses as well as shapes. Inputs are copied into the buffers of
the recording, its result is read before the next replay, and its allocations come from a pool, into which the smaller
buckets fit after the largest. On a CPU it is a trace, run by torch's interpreter. The kernels are those of the plain
call, so the answers are equal to the bit.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from serve.engine.execution.faults import is_device_lost, is_out_of_memory

_log = logging.getLogger(__name__)

Compute = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""Takes inputs [members, rows, width] to [members, rows, ...]."""

_TRACED_S = 0.1
"""A plain call that takes more processor time is not traced: a trace would save less than a tenth of the call, and
making it costs several calls."""

_OF_ONEDNN = ("Unsupported value kind: Tensor", "unsupported input list type: Scalar")
"""How torch says that a trace cannot hold weights that are packed for oneDNN, or a product by oneDNN's own operator."""

_WARM_UPS = 3
"""Runs before a recording: cuBLAS and the allocator choose their methods in the first ones."""


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
    """`compute` on the current GPU, recorded once for each combination of input shapes. Inputs may be on the host.

    A shape whose recording fails is computed plainly, unless memory ran out or the device is lost.

    Attributes:
        num_unrecorded: shapes that are computed plainly.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._recordings: dict[tuple[torch.Size, ...], _Recording | None] = {}
        self._pool: Any = None
        self.num_unrecorded = 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The result for these inputs. It is valid until the next call with the same shapes."""
        shapes = tuple(given.shape for given in inputs)
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(inputs)
        recording = self._recordings[shapes]
        if recording is None:
            gpu = _current_gpu()
            return self._compute([given.to(gpu, non_blocking=True) for given in inputs])
        return recording.replay(inputs)

    def _record(self, inputs: Sequence[torch.Tensor]) -> _Recording | None:
        gpu = _current_gpu()
        static = tuple(given.to(gpu, copy=True) for given in inputs)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._compute(static)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            return self._capture(static, aside)
        except Exception as error:
            self._pool = None  # torch lets no other capture into the pool of one that failed
            # what failed within a capture may hide behind the failure to end it
            cause = error.__context__ if isinstance(error.__context__, Exception) else error
            if is_out_of_memory(cause) or is_device_lost(cause):
                raise cause from None
            self.num_unrecorded += 1
            num_rows, reason = inputs[0].shape[1], str(cause).strip().partition("\n")[0]
            _log.warning("a forward pass of %d rows runs without a CUDA graph, which is slower: %s", num_rows, reason)
            return None

    def _capture(self, static: tuple[torch.Tensor, ...], stream: torch.cuda.Stream) -> _Recording:
        graph = torch.cuda.CUDAGraph()
        # Where a capture fails, torch does not return to the stream of before; the outer context does.
        # The stream is named, because torch's own stays on the first GPU that the process captured on.
        # "thread_local": a thread that waits for the batch before would end the capture otherwise.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
        ):
            output = self._compute(static)
        self._pool = graph.pool()
        return _Recording(graph, static, output)


def _current_gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


class TracedCompute:
    """`compute` on a CPU, traced once for each combination of input shapes for which it is fast.

    Tracing saves a quarter of a call of the demo model for one row, and a tenth for 32 rows (one core).
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._traces: dict[tuple[torch.Size, ...], Callable[..., torch.Tensor]] = {}

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        shapes = tuple(given.shape for given in inputs)
        if shapes not in self._traces:
            self._traces[shapes] = self._trace(inputs) if self._is_fast(inputs) else self._call
        # The optimizer fuses nothing on a CPU, and would spend two slow calls of each shape to find that out.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self._traces[shapes](*inputs)

    def _is_fast(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether a call takes less than `_TRACED_S` of this process's processor time. A slow first call, which may
        include work that happens only once, is measured a second time."""
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
            # torch warns that numbers derived from shapes become constants, which is intended.
            warnings.simplefilter("ignore")
            try:
                traced: Any = torch.jit.trace(self._call, tuple(inputs), check_trace=False)  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                # Products by oneDNN gain more than a trace would, so their lack of a trace is no fault. Any other fault
                # shows in the plain call, too.
                num_rows, reason = inputs[0].shape[1], str(error).strip().partition("\n")[0]
                level = logging.DEBUG if reason.startswith(_OF_ONEDNN) else logging.WARNING
                _log.log(level, "a forward pass of %d rows runs without a trace: %s", num_rows, reason)
                return self._call
        return cast(Callable[..., torch.Tensor], traced)
