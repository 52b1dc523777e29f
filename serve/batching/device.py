"""The device thread, the thread that collects, and the watch over batches that hang.

Theory of operation
-------------------
One thread owns the device. Exceptions leave it as values, because some of them (StopIteration, SystemExit) cannot
cross a future.

Where the engine takes two batches, the device thread prepares and launches them, and a second thread collects the
answers in the order of the launches. A batch crosses threads once each way as before: the device thread hands it to the
second thread itself. Other work of the device thread waits until every launched batch is collected, so a fit never runs
beside a batch. The second thread waits for nothing but the device, so the two cannot wait for each other.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import numpy as np

from serve.batching.fifo import Slice
from serve.batching.outcomes import AdmittedRequest
from serve.batching.recovery import WrongAnswer
from serve.core import Batch, Engine, Launched, Matrix
from serve.core.errors import OutOfMemory

T = TypeVar("T")

MIN_HUNG_S = 10.0
"""No batch counts as hung before this. A CPU whose cores are taken, or a GPU that another process uses, can stall for
seconds and come back. Ray needs three failed health checks in a row, which take 30 s."""


@dataclass(frozen=True, slots=True)
class Computed:
    """The end of a batch on the device: outputs of the right shape, or the error that the engine raised.

    Attributes:
        started_at: when the device began with it, as far as it is known.
        ready_at: when the host had prepared it.
    """

    outputs: Matrix | None
    error: BaseException | None
    started_at: float
    ended_at: float
    ready_at: float = math.nan

    @property
    def seconds(self) -> float:
        """Time on the device."""
        return self.ended_at - self.started_at


class Device:
    """Runs blocking work on the device thread, one piece after the other."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._collector = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device-collect")
        self._last_launched: Future[None] | None = None  # of the device thread
        self._ended_at = -math.inf  # of the collecting thread

    @property
    def max_in_flight(self) -> int:
        """Batches that may be launched and not collected."""
        return self._engine.max_in_flight

    async def run(self, fn: Callable[[], T]) -> T:
        """The result of `fn`; its exceptions are raised here. Cancelling the caller does not stop the work."""
        value, error = await asyncio.get_running_loop().run_in_executor(self._thread, self._call_alone, fn)
        if error is not None:
            raise error
        return cast(T, value)

    async def compute(self, slices: Sequence[Slice[AdmittedRequest]]) -> Computed:
        """Join the rows of one context and run the engine on them."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, slices)

    def launch(self, slices: Sequence[Slice[AdmittedRequest]], land: Callable[[Computed], None]) -> None:
        """Join the rows of one context and launch them; `land` is called on the event loop, in that order."""
        self._thread.submit(self._launch, slices, land, asyncio.get_running_loop())

    def shutdown(self) -> None:
        """Wait for the work on the threads, and end them."""
        self._thread.shutdown()
        self._collector.shutdown()

    def _call_alone(self, fn: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        if self._last_launched is not None:
            wait([self._last_launched])
        return _call(fn)

    def _compute(self, slices: Sequence[Slice[AdmittedRequest]]) -> Computed:
        started_at = self._clock()
        outputs, error = _call(lambda: self._predict(slices))
        return Computed(outputs, _without_frames(error), started_at, self._clock())

    def _predict(self, slices: Sequence[Slice[AdmittedRequest]]) -> Matrix:
        batch = _join(slices)
        return _checked(self._engine.predict(batch), batch)

    def _launch(
        self,
        slices: Sequence[Slice[AdmittedRequest]],
        land: Callable[[Computed], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        def start() -> tuple[Launched, Batch]:
            batch = _join(slices)
            return self._engine.launch(batch), batch

        started_at = self._clock()
        launched, error = _call(start)
        ready_at = self._clock()

        def collect() -> None:
            computed = self._collect(launched, error, started_at, ready_at)
            loop.call_soon_threadsafe(land, computed)

        self._last_launched = self._collector.submit(collect)

    def _collect(
        self, launched: tuple[Launched, Batch] | None, error: BaseException | None, started_at: float, ready_at: float
    ) -> Computed:
        """On the second thread: wait for the outputs of a batch, or pass on why it was not launched."""
        outputs = None
        if launched is not None:
            running, batch = launched
            outputs, error = _call(lambda: _checked(running.collect(), batch))
            prepared_s: float | None = getattr(running, "prepared_s", None)
            if prepared_s is not None:
                ready_at = started_at + prepared_s
        began_at, self._ended_at = max(started_at, self._ended_at), self._clock()
        return Computed(outputs, _without_frames(error), began_at, self._ended_at, ready_at)


class DeviceLoad(NamedTuple):
    """The batches on the device: when the first began, its expected seconds (NaN for no batch), and those of all."""

    began_at: float
    first_s: float
    total_s: float

    def remaining_s(self, now: float) -> float:
        """See `BatchWatchdog.remaining_s`."""
        if self.first_s != self.first_s:
            return 0.0
        return abs(self.first_s - (now - self.began_at)) + self.total_s - self.first_s


class BatchWatchdog:
    """Knows when the batch on the device began and how long it and the next should take: `begin` each, then `end` each.

    Args:
        hung_factor: how many times its expected time a batch may take.
    """

    __slots__ = ("_began_at", "_expected_s", "_hung_factor")

    def __init__(self, hung_factor: float) -> None:
        self._hung_factor = hung_factor
        self._began_at = 0.0
        self._expected_s: deque[float] = deque()

    def begin(self, expected_s: float, now: float) -> None:
        """A batch goes to the device, behind any other; `expected_s` is 0 where no similar batch was measured."""
        if not self._expected_s:
            self._began_at = now
        self._expected_s.append(expected_s)

    def end(self, now: float) -> None:
        """The oldest batch has ended, and the next begins."""
        self._expected_s.popleft()
        self._began_at = now

    def clear(self) -> None:
        """Nothing is on the device."""
        self._expected_s.clear()

    @property
    def ends_at(self) -> float:
        """When the batch on the device was expected to end as it began; infinity where no similar one was measured."""
        return self._began_at + (self._expected_s[0] or math.inf)

    def remaining_s(self, now: float) -> float:
        """Seconds until the device is expected to be free of every batch.

        A late batch is expected to take as long again as it is late: there is no better estimate, and callers with
        little time left are then refused while it hangs.
        """
        if not self._expected_s:  # as `DeviceLoad.remaining_s`, without making one: every request asks
            return 0.0
        return abs(self._expected_s[0] - (now - self._began_at)) + sum(self._expected_s) - self._expected_s[0]

    def load(self) -> DeviceLoad:
        """The batches on the device."""
        if not self._expected_s:
            return DeviceLoad(self._began_at, math.nan, 0.0)
        return DeviceLoad(self._began_at, self._expected_s[0], sum(self._expected_s))

    def is_hung(self, now: float) -> bool:
        """The batch has taken so much longer than expected that the device must be considered hung."""
        if not self._expected_s or not self._expected_s[0]:
            return False
        return now - self._began_at > max(self._hung_factor * self._expected_s[0], MIN_HUNG_S)


def _join(slices: Sequence[Slice[AdmittedRequest]]) -> Batch:
    rows = np.concatenate([request.rows[start:stop] for request, start, stop in slices])
    return Batch(slices[0].request.context, rows)


def _call(fn: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return fn(), None
    except BaseException as error:
        return None, error


def _checked(outputs: Matrix, batch: Batch) -> Matrix:
    """The outputs, one row per row of the batch; raises WrongAnswer, since then no row has a known answer."""
    expected = (len(batch.rows), batch.context.num_outputs)
    if not isinstance(outputs, np.ndarray) or outputs.shape != expected:
        raise WrongAnswer(f"the engine answered {getattr(outputs, 'shape', outputs)!r}, expected {expected}")
    return outputs


def _without_frames(error: BaseException | None) -> BaseException | None:
    """The error; where memory ran out without its frames, which would keep the tensors of the failed try alive."""
    return OutOfMemory(str(error)) if isinstance(error, OutOfMemory) else error
