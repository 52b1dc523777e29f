"""The device thread: runs batches, watches for a batch that hangs, and splits a batch that failed.

Theory of operation
-------------------
One thread owns the device. Exceptions leave it as values, because some of them (StopIteration, SystemExit) cannot
cross a future.

After a failure the batch is tried again in smaller parts (`smaller_parts`) until only the culprit fails. The batch is
bisected by requests: a request that fails alone is the culprit. Where memory ran out the number of rows is at fault, so
the batch is halved by rows, through a request if need be. `n` requests with one culprit cost about `2 * log2(n)` more
calls, most of them small. Three failures are final: an answer with the wrong number of rows, since then no row has a
known answer and the engine is broken; a lost device; and a request or row that failed alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from serve.batching.fifo import R, Slice, count_rows
from serve.batching.outcomes import AdmittedRequest
from serve.core import Batch, Engine, Matrix
from serve.core.errors import DeviceLost, OutOfMemory

T = TypeVar("T")

MIN_HUNG_S = 10.0
"""No batch counts as hung before this. A CPU whose cores are taken, or a GPU that another process uses, can stall for
seconds and come back. Ray needs three failed health checks in a row, which take 30 s."""


class WrongAnswer(Exception):
    """The engine answered with another number of rows or outputs than the batch asks for."""


@dataclass(frozen=True, slots=True)
class Computed:
    """The end of a batch on the device: outputs of the right shape, or the error that the engine raised."""

    outputs: Matrix | None
    error: BaseException | None
    started_at: float
    ended_at: float

    @property
    def seconds(self) -> float:
        """Time on the device thread."""
        return self.ended_at - self.started_at


class Device:
    """Runs blocking work on the device thread, one piece after the other."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    async def run(self, fn: Callable[[], T]) -> T:
        """The result of `fn`; its exceptions are raised here. Cancelling the caller does not stop the work."""
        value, error = await asyncio.get_running_loop().run_in_executor(self._thread, _call, fn)
        if error is not None:
            raise error
        return cast(T, value)

    async def compute(self, slices: Sequence[Slice[AdmittedRequest]]) -> Computed:
        """Join the rows of one context and run the engine on them."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, slices)

    def shutdown(self) -> None:
        """Wait for the work on the thread, and end the thread."""
        self._thread.shutdown()

    def _compute(self, slices: Sequence[Slice[AdmittedRequest]]) -> Computed:
        outputs: Matrix | None = None
        error: BaseException | None = None
        started_at = self._clock()
        try:
            context = slices[0].request.context
            rows = np.concatenate([request.rows[start:stop] for request, start, stop in slices])
            outputs = self._engine.predict(Batch(context, rows))
            _check_shape(outputs, (len(rows), context.num_outputs))
        except OutOfMemory as raised:
            # Without the traceback: its frames would keep the tensors of the failed try alive through the next one.
            error = OutOfMemory(str(raised))
        except BaseException as raised:
            error = raised
        return Computed(outputs, error, started_at, self._clock())


class BatchWatchdog:
    """Knows when the batch on the device began and how long it should take. One batch at a time: `begin`, then `end`.

    Args:
        hung_factor: how many times its expected time a batch may take.
    """

    __slots__ = ("_began_at", "_expected_s", "_hung_factor")

    def __init__(self, hung_factor: float) -> None:
        self._hung_factor = hung_factor
        self._began_at: float | None = None
        self._expected_s = 0.0

    def begin(self, expected_s: float, now: float) -> None:
        """A batch goes to the device; `expected_s` is 0 where no similar batch was measured."""
        self._began_at, self._expected_s = now, expected_s

    def end(self) -> None:
        """The device is free."""
        self._began_at = None

    def remaining_s(self, now: float) -> float:
        """Seconds until the device is expected to be free.

        A late batch is expected to take as long again as it is late: there is no better estimate, and callers with
        little time left are then refused while it hangs.
        """
        return 0.0 if self._began_at is None else abs(self._expected_s - (now - self._began_at))

    def is_hung(self, now: float) -> bool:
        """The batch has taken so much longer than expected that the device must be considered hung."""
        if self._began_at is None or not self._expected_s:
            return False
        return now - self._began_at > max(self._hung_factor * self._expected_s, MIN_HUNG_S)


def smaller_parts(slices: Sequence[Slice[R]], error: BaseException) -> list[list[Slice[R]]]:
    """The two parts in which a failed batch is tried again, in order; none if `error` is final."""
    if isinstance(error, WrongAnswer | DeviceLost):
        return []
    if isinstance(error, OutOfMemory):
        return _halve_rows(slices)
    middle = len(slices) // 2
    return [list(slices[:middle]), list(slices[middle:])] if middle else []


def _halve_rows(slices: Sequence[Slice[R]]) -> list[list[Slice[R]]]:
    room = count_rows(slices) // 2
    if not room:
        return []
    first: list[Slice[R]] = []
    second: list[Slice[R]] = []
    for request, start, stop in slices:
        middle = min(stop, start + room)
        if middle > start:
            first.append(Slice(request, start, middle))
        if middle < stop:
            second.append(Slice(request, middle, stop))
        room -= middle - start
    return [first, second]


def _call(fn: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return fn(), None
    except BaseException as error:
        return None, error


def _check_shape(outputs: object, expected: tuple[int, int]) -> None:
    """One answer per row, or no row has a known answer."""
    if not isinstance(outputs, np.ndarray) or outputs.shape != expected:
        raise WrongAnswer(f"the engine answered {getattr(outputs, 'shape', outputs)!r}, expected {expected}")
