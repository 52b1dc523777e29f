"""A batcher over FakeEngine, its callers, and a gate that holds the device. For the tests of this folder.

A `HeldDevice` holds every batch on the device until the test lets it through, so each state is entered, not waited for.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from serve.batching import Batcher
from serve.batching.outcomes import AdmittedRequest, Outcome
from serve.core import Batch, Matrix, ModelReference, Prediction, PredictRequest, Priority, QueryTable
from serve.engine.fake import FakeContext, FakeEngine, fake_answer
from serve.settings import BatchingSettings
from serve.telemetry.prometheus import PrometheusRecorder

A, B = FakeContext(), FakeContext()
TIMEOUT_S = 10.0
"""Of a test that hangs; never of one that passes."""
DEFAULT_TIMEOUT_S = 30.0
"""Of a request that states none."""


class HeldDevice:
    """Holds batches on the device; made on the test's event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entered: asyncio.Queue[Batch] = asyncio.Queue()
        self._passes = threading.Semaphore(0)

    def __call__(self, batch: Batch) -> None:
        self._loop.call_soon_threadsafe(self._entered.put_nowait, batch)
        assert self._passes.acquire(timeout=TIMEOUT_S)

    async def entered(self) -> Batch:
        """Wait until a batch is on the device; each batch once."""
        return await asyncio.wait_for(self._entered.get(), TIMEOUT_S)

    def let_through(self, num_batches: int = 1) -> None:
        self._passes.release(num_batches)

    def open(self) -> None:
        self.let_through(100_000)


class Harness:
    """A started batcher, and requests whose every row is different."""

    def __init__(self, batcher: Batcher, metrics: PrometheusRecorder, clock: Callable[[], float]) -> None:
        self.batcher = batcher
        self.metrics = metrics
        self.clock = clock
        self._num_rows = 0

    def rows(self, num_rows: int = 1) -> Matrix:
        start, self._num_rows = self._num_rows, self._num_rows + num_rows
        return np.arange(3 * start, 3 * self._num_rows, dtype=np.float64).reshape(num_rows, 3)

    def request(self, num_rows: int = 1, context: FakeContext = A, **options: Any) -> "Ask":
        return Ask(self, context, self.rows(num_rows), **options)

    async def submit(
        self,
        rows: Matrix,
        context: FakeContext = A,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Prediction:
        """The batcher's `submit` of a request with these rows."""
        return await self.batcher.submit(self._request(rows, context, timeout_s, priority), context, rows)

    def admit(self, num_rows: int = 1, on_outcome: Callable[[Outcome], None] = lambda _: None) -> AdmittedRequest:
        """The batcher's `admit` of a request of its own rows."""
        rows = self.rows(num_rows)
        request = self._request(rows, A, DEFAULT_TIMEOUT_S, Priority.INTERACTIVE)
        return self.batcher.admit(request, A, rows, on_outcome)

    def _request(self, rows: Matrix, context: FakeContext, timeout_s: float, priority: Priority) -> PredictRequest:
        table = QueryTable.from_rows([column.name for column in context.columns], rows.tolist())
        now = self.clock()
        return PredictRequest(ModelReference("m"), table, now, now + timeout_s, priority)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"tabpfn_{name}", labels) or 0.0

    @property
    def queued_rows(self) -> float:
        return sum(self.value("queued_rows", priority=priority) for priority in Priority)


class Ask:
    """One caller."""

    def __init__(self, harness: Harness, context: FakeContext, rows: Matrix, **options: Any) -> None:
        self.context, self.rows = context, rows
        self.task = asyncio.create_task(harness.submit(rows, context, **options))

    async def answered(self) -> Prediction:
        """The answer, checked to be that of this caller's rows."""
        prediction = await asyncio.wait_for(asyncio.shield(self.task), TIMEOUT_S)
        np.testing.assert_allclose(prediction.outputs, fake_answer(Batch(self.context, self.rows)), rtol=1e-12)
        return prediction

    async def failed(self) -> BaseException:
        await asyncio.wait([self.task], timeout=TIMEOUT_S)
        assert self.task.done()
        error = self.task.exception()
        assert error is not None
        return error


@asynccontextmanager
async def serving(
    engine: FakeEngine, clock: Callable[[], float] = time.monotonic, **batching: float
) -> AsyncIterator[Harness]:
    metrics = PrometheusRecorder()
    batcher = Batcher(engine, BatchingSettings.model_validate(batching), metrics, clock)
    await batcher.start()
    try:
        yield Harness(batcher, metrics, clock)
    finally:
        await asyncio.wait_for(batcher.close(), TIMEOUT_S)
        assert _is_empty(metrics)


def _is_empty(metrics: PrometheusRecorder) -> bool:
    names = ("queued_requests", "in_flight_requests")
    values = [metrics.registry.get_sample_value(f"tabpfn_{name}") for name in names]
    values += [metrics.registry.get_sample_value("tabpfn_queued_rows", {"priority": p}) for p in Priority]
    return values == [0, 0, 0, 0]


async def turns(num: int = 5) -> None:
    """Let everything that is ready on the loop run."""
    for _ in range(num):
        await asyncio.sleep(0)


class VirtualClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class WrongEngine(FakeEngine):
    """Answers too little, too much, too narrow or nothing."""

    def __init__(self, spoil: Callable[[Matrix], object], max_in_flight: int = 1) -> None:
        super().__init__(max_in_flight=max_in_flight)
        self.spoil: Callable[[Matrix], object] | None = spoil

    def _compute(self, batch: Batch) -> Matrix:
        answer = super()._compute(batch)
        return answer if self.spoil is None else self.spoil(answer)  # type: ignore[return-value]
