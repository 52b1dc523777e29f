"""Runs batches on the device: on the device thread and the thread that collects, or on the event loop.

Theory of operation
-------------------
One thread owns the device. Exceptions leave it as values, because some of them (StopIteration, SystemExit) cannot
cross a future.

Where the engine takes two batches, the device thread prepares and launches them, and a second thread collects the
answers in the order of the launches. A batch crosses threads once each way as before: the device thread hands it to the
second thread itself. Other work of the device thread waits until every launched batch is collected, so a fit never runs
beside a batch. The second thread waits for nothing but the device, so the two cannot wait for each other.

An engine in another process says by a file descriptor when an answer is there (`Engine.answer_fd`). Then no thread is
needed for batches (`LoopDevice`): each crossing of threads costs a lone request as much as all of its policy. Batches
and the work of the device thread take turns: a launch waits while such work runs, and the work waits for the batches.
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

    async def finish(self) -> None:
        """Wait for the batches and the other work, and end the threads."""
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._collector.shutdown)

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
        started_at = self._clock()
        launched, error = _call(lambda: self._start(slices))
        ready_at = self._clock()

        def collect() -> None:
            computed = self._collect(launched, error, started_at, ready_at)
            loop.call_soon_threadsafe(land, computed)

        self._last_launched = self._collector.submit(collect)

    def _start(self, slices: Sequence[Slice[AdmittedRequest]]) -> tuple[Launched, Batch]:
        batch = _join(slices)
        return self._engine.launch(batch), batch

    def _collect(
        self, launched: tuple[Launched, Batch] | None, error: BaseException | None, started_at: float, ready_at: float
    ) -> Computed:
        """Wait for the outputs of a batch, or pass on why it was not launched."""
        outputs, ended_at = None, None
        if launched is not None:
            running, batch = launched
            outputs, error = _call(lambda: _checked(running.collect(), batch))
            prepared_s: float | None = getattr(running, "prepared_s", None)
            if prepared_s is not None:
                ready_at = started_at + prepared_s
            ended_at = getattr(running, "ended_at", None)
        began_at, self._ended_at = max(started_at, self._ended_at), self._clock() if ended_at is None else ended_at
        return Computed(outputs, _without_frames(error), began_at, self._ended_at, ready_at)


class _Flight(NamedTuple):
    """A launched batch, or the error of its launch."""

    launched: tuple[Launched, Batch] | None
    error: BaseException | None
    started_at: float
    ready_at: float
    land: Callable[[Computed], None]


class LoopDevice(Device):
    """Launches and collects on the event loop, for an engine with an `answer_fd`."""

    def __init__(self, engine: Engine, clock: Callable[[], float], answer_fd: int) -> None:
        super().__init__(engine, clock)
        self._answer_fd = answer_fd
        self._flights: deque[_Flight] = deque()
        self._have_landed = asyncio.Event()
        self._have_landed.set()
        self._num_alone = 0
        """Pieces of other work that run, or wait to run."""
        self._held: list[tuple[Sequence[Slice[AdmittedRequest]], Callable[[Computed], None]]] = []
        """Launches that wait for such work."""
        self._reader: asyncio.AbstractEventLoop | None = None
        """The loop that watches the descriptor."""

    async def run(self, fn: Callable[[], T]) -> T:
        self._num_alone += 1
        work = asyncio.create_task(self._run_alone(fn))
        work.add_done_callback(lambda _: self._end_alone())
        return await asyncio.shield(work)

    async def _run_alone(self, fn: Callable[[], T]) -> T:
        await self._have_landed.wait()
        self._stop_reading()  # the work reads answers itself
        return await super().run(fn)

    def _end_alone(self) -> None:
        self._num_alone -= 1
        if not self._num_alone:
            held, self._held = self._held, []
            for slices, land in held:
                self.launch(slices, land)

    async def compute(self, slices: Sequence[Slice[AdmittedRequest]]) -> Computed:
        computed: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self.launch(slices, lambda end: None if computed.done() else computed.set_result(end))
        return await computed

    def launch(self, slices: Sequence[Slice[AdmittedRequest]], land: Callable[[Computed], None]) -> None:
        if self._num_alone:
            self._held.append((slices, land))
            return
        started_at = self._clock()
        launched, error = _call(lambda: self._start(slices))
        self._flights.append(_Flight(launched, error, started_at, self._clock(), land))
        self._have_landed.clear()
        loop = asyncio.get_running_loop()
        if launched is None:
            loop.call_soon(self._land_failed)
        elif self._reader is None:
            self._reader = loop
            loop.add_reader(self._answer_fd, self._answer_is_there)

    def _answer_is_there(self) -> None:
        if not self._flights or self._flights[0].launched is None:
            self._stop_reading()  # the engine's process has hung up; `Engine.lost` says so
            return
        self._land()
        self._land_failed()

    def _land_failed(self) -> None:
        while self._flights and self._flights[0].launched is None:
            self._land()

    def _land(self) -> None:
        launched, error, started_at, ready_at, land = self._flights.popleft()
        computed = self._collect(launched, error, started_at, ready_at)
        if not self._flights:
            self._have_landed.set()
        land(computed)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.remove_reader(self._answer_fd)
            self._reader = None

    async def finish(self) -> None:
        await self._have_landed.wait()
        self._stop_reading()
        await super().finish()


def device_of(engine: Engine, clock: Callable[[], float]) -> Device:
    """The device of an engine."""
    answer_fd = engine.answer_fd
    return Device(engine, clock) if answer_fd is None else LoopDevice(engine, clock, answer_fd)


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
