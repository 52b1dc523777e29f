"""The one thread that owns the device, and what it makes of a batch.

Exceptions are handed over as values, because some (StopIteration, SystemExit) cannot cross a future.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from serve.batching.fifo import Slice
from serve.batching.recovery import WrongAnswer
from serve.batching.request import Request
from serve.core import Batch, Engine, Matrix
from serve.core.errors import OutOfMemory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Computed:
    """What became of a batch: the engine's outputs, of the right shape, or what it raised."""

    outputs: Matrix | None
    error: BaseException | None
    started_at: float
    ended_at: float

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at


class Device:
    """Runs blocking work on the device thread, one piece after the other."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    async def run(self, fn: Callable[[], T]) -> T:
        """The result of `fn`; its exceptions are raised here. Cancelling the caller does not stop it."""
        value, error = await asyncio.get_running_loop().run_in_executor(self._thread, _call, fn)
        if error is not None:
            raise error
        return cast(T, value)

    async def compute(self, slices: Sequence[Slice[Request]]) -> Computed:
        """Join the rows of one context and run the engine on them."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, slices)

    def shutdown(self) -> None:
        """Wait for what is on the thread, and end it."""
        self._thread.shutdown()

    def _compute(self, slices: Sequence[Slice[Request]]) -> Computed:
        outputs: Matrix | None = None
        error: BaseException | None = None
        started_at = self._clock()
        try:
            context = slices[0].request.context
            rows = np.concatenate([request.rows[start:stop] for request, start, stop in slices])
            outputs = self._engine.predict(Batch(context, rows))
            _check_shape(outputs, (len(rows), context.num_outputs))
        except OutOfMemory as raised:
            # Without the traceback, whose frames would keep the tensors of the failed try alive through the next one.
            error = OutOfMemory(str(raised))
        except BaseException as raised:
            error = raised
        return Computed(outputs, error, started_at, self._clock())


def _call(fn: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return fn(), None
    except BaseException as error:
        return None, error


def _check_shape(outputs: object, expected: tuple[int, int]) -> None:
    """Rows in = rows out, or nobody can be told which answer is whose."""
    if not isinstance(outputs, np.ndarray) or outputs.shape != expected:
        raise WrongAnswer(f"the engine answered {getattr(outputs, 'shape', outputs)!r} where {expected} was due")
