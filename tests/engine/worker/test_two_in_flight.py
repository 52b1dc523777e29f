"""Two batches in flight: the worker prepares one while the other is computed, and each has its own answer or error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_worker import (
    KILLED_EARLY,
    KILLED_LATE,
    LOST_EARLY,
    LOST_LATE,
    NO_MEMORY,
    PREPARATION_S,
    PREPARED_SLOWLY,
    RELEASES,
    TWO_IN_FLIGHT,
    UNEXPECTED,
    UNLAUNCHED,
    WAITS,
    WORKER,
    numbers,
)
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from serve.batching import Batcher
from serve.core import Batch, Launched, Matrix, ModelReference, PredictRequest, Priority, QueryTable
from serve.core.errors import DeviceLost, EngineError, OutOfMemory
from serve.engine.fake import fake_answer
from serve.engine.worker import client
from serve.engine.worker.client import ContextHandle, WorkerEngine
from serve.engine.worker.shared_rows import MIN_BYTES, SharedRows
from serve.settings import BatchingSettings, EngineSettings
from serve.telemetry.prometheus import PrometheusRecorder

SHARED_ROWS = MIN_BYTES // 16
"""Rows of two numbers, from which on they cross by shared memory."""


@pytest.fixture
def worker() -> Iterator[WorkerEngine]:
    engine = WorkerEngine(EngineSettings(), 8, TWO_IN_FLIGHT)
    yield engine
    engine.close()


@pytest.fixture
def context(worker: WorkerEngine) -> ContextHandle:
    return worker.fit(numbers())


def batch_of(context: ContextHandle, first_cell: float, num_rows: int = 3) -> Batch:
    rows = np.random.default_rng(num_rows).random((num_rows, 2))
    rows[0, 0] = first_cell
    return Batch(context, rows)


def in_thread(call: Callable[[], Matrix]) -> Matrix:
    """The result of a call in a second thread, where the batcher collects."""
    results: list[Matrix] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_the_workers_engine_says_how_many(worker: WorkerEngine) -> None:
    assert worker.max_in_flight == 2
    one = WorkerEngine(EngineSettings(), 8, WORKER)
    assert one.max_in_flight == 1
    one.close()


@pytest.mark.parametrize("num_rows", [1, SHARED_ROWS])
def test_a_batch_is_launched_while_the_one_before_is_computed(
    worker: WorkerEngine, context: ContextHandle, num_rows: int
) -> None:
    first, second = batch_of(context, WAITS, num_rows), batch_of(context, RELEASES, num_rows)
    for _ in range(3):
        launched = worker.launch(first), worker.launch(second)
        np.testing.assert_array_equal(in_thread(launched[0].collect), fake_answer(first))
        np.testing.assert_array_equal(in_thread(launched[1].collect), fake_answer(second))


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (NO_MEMORY, OutOfMemory, "no memory for 3 rows"),
        (UNEXPECTED, EngineError, "LookupError"),
        (UNLAUNCHED, OutOfMemory, "no memory to prepare it"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_batch_that_fails_harms_no_other(
    worker: WorkerEngine, context: ContextHandle, fault: float, error: type[Exception], text: str, place: int
) -> None:
    batches = [batch_of(context, 1.0), batch_of(context, 2.0)]
    batches[place] = batch_of(context, fault)
    launched = [worker.launch(batch) for batch in batches]
    for number, one in enumerate(launched):
        if number == place:
            with pytest.raises(error, match=text):
                one.collect()
        else:
            np.testing.assert_array_equal(one.collect(), fake_answer(batches[number]))
    np.testing.assert_array_equal(worker.predict(batches[1 - place]), fake_answer(batches[1 - place]))


@pytest.mark.parametrize(
    ("cells", "how"),
    [
        ((KILLED_LATE, RELEASES), "signal 9"),
        ((WAITS, KILLED_EARLY), "signal 9"),
        ((LOST_LATE, RELEASES), "exit code 70"),
        ((WAITS, LOST_EARLY), "exit code 70"),
    ],
)
def test_a_worker_that_ends_fails_both(
    worker: WorkerEngine, context: ContextHandle, cells: tuple[float, float], how: str
) -> None:
    for launched in [worker.launch(batch_of(context, cell)) for cell in cells]:
        with pytest.raises(DeviceLost, match=how):
            launched.collect()
    assert worker.lost


def test_it_tells_how_long_the_worker_prepared_a_batch(worker: WorkerEngine, context: ContextHandle) -> None:
    launched = worker.launch(batch_of(context, PREPARED_SLOWLY))
    launched.collect()
    assert launched.prepared_s >= PREPARATION_S


def test_the_protocol_is_asserted(worker: WorkerEngine, context: ContextHandle) -> None:
    batch = batch_of(context, 1.0)
    first, second = worker.launch(batch), worker.launch(batch)
    with pytest.raises(AssertionError, match="too many"):
        worker.launch(batch)
    with pytest.raises(AssertionError, match="order"):
        second.collect()
    for call in (lambda: worker.fit(numbers()), lambda: worker.reference(batch)):
        with pytest.raises(AssertionError, match="in flight"):
            call()
    first.collect()
    second.collect()
    with pytest.raises(AssertionError, match="once"):
        second.collect()
    worker.reference(batch)


@pytest.mark.parametrize("num_rows", [SHARED_ROWS - 1, SHARED_ROWS, SHARED_ROWS + 1, 5 * SHARED_ROWS])
def test_large_rows_cross_by_shared_memory(
    worker: WorkerEngine, context: ContextHandle, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    slot = SharedRows.slot

    def told(self: SharedRows, number: int, shape: tuple[int, int]) -> Matrix:
        used.append(number)
        return slot(self, number, shape)

    monkeypatch.setattr(SharedRows, "slot", told)
    batches = [batch_of(context, float(number), num_rows) for number in range(4)]
    launched = [worker.launch(batches[0]), worker.launch(batches[1])]
    np.testing.assert_array_equal(launched[0].collect(), fake_answer(batches[0]))
    launched.append(worker.launch(batches[2]))
    np.testing.assert_array_equal(launched[1].collect(), fake_answer(batches[1]))
    launched.append(worker.launch(batches[3]))
    np.testing.assert_array_equal(launched[2].collect(), fake_answer(batches[2]))
    np.testing.assert_array_equal(launched[3].collect(), fake_answer(batches[3]))
    assert used == ([0, 1, 0, 1] if num_rows >= SHARED_ROWS else [])


def test_rows_too_many_for_a_slot_cross_in_the_frame(
    worker: WorkerEngine, context: ContextHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SLOT_BYTES", 16 * SHARED_ROWS)
    monkeypatch.setattr(worker, "_shared", None)
    batch = batch_of(context, 1.0, SHARED_ROWS + 1)
    np.testing.assert_array_equal(worker.predict(batch), fake_answer(batch))


FAULTS = {NO_MEMORY: OutOfMemory, UNEXPECTED: EngineError, UNLAUNCHED: OutOfMemory}
FIRST_CELLS = st.floats(0, 1) | st.sampled_from(sorted(FAULTS))


class AnyOrder(RuleBasedStateMachine):
    """Launches and collects in any order that the protocol allows; each batch gets its own answer or error."""

    def __init__(self, worker: WorkerEngine) -> None:
        super().__init__()
        self.worker = worker
        self.in_flight: list[tuple[Launched, Batch]] = []

    @initialize()
    def fit(self) -> None:
        self.context = self.worker.fit(numbers())

    @precondition(lambda self: len(self.in_flight) < 2)
    @rule(first_cell=FIRST_CELLS, num_rows=st.sampled_from([1, 7, SHARED_ROWS - 1, SHARED_ROWS, 2 * SHARED_ROWS]))
    def launch(self, first_cell: float, num_rows: int) -> None:
        batch = batch_of(self.context, first_cell, num_rows)
        self.in_flight.append((self.worker.launch(batch), batch))

    @precondition(lambda self: self.in_flight)
    @rule(another_thread=st.booleans())
    def collect(self, another_thread: bool) -> None:
        launched, batch = self.in_flight.pop(0)
        error = FAULTS.get(batch.rows[0, 0])
        if error is not None:
            with pytest.raises(error):
                launched.collect()
            return
        outputs = in_thread(launched.collect) if another_thread else launched.collect()
        np.testing.assert_array_equal(outputs, fake_answer(batch))

    @precondition(lambda self: not self.in_flight)
    @rule()
    def check_the_reference(self) -> None:
        batch = batch_of(self.context, 0.5, 2)
        np.testing.assert_array_equal(self.worker.reference(batch), fake_answer(batch))

    @invariant()
    def the_worker_lives(self) -> None:
        assert not self.worker.lost

    def teardown(self) -> None:
        while self.in_flight:
            self.collect(another_thread=False)


def test_any_order(worker: WorkerEngine) -> None:
    run_state_machine_as_test(lambda: AnyOrder(worker))


async def test_the_batchers_callers_get_their_own_answers(worker: WorkerEngine, metrics: PrometheusRecorder) -> None:
    batcher = Batcher(worker, BatchingSettings(max_batch_rows=8), metrics)
    await batcher.start()
    context = await batcher.run_on_device(lambda: worker.fit(numbers()))
    draw = np.random.default_rng(0)

    async def ask(num_rows: int) -> None:
        rows = draw.random((num_rows, 2))
        now = time.monotonic()
        table = QueryTable.from_rows(["a", "b"], rows.tolist())
        request = PredictRequest(ModelReference("m"), table, now, now + 60, Priority.INTERACTIVE)
        prediction = await batcher.submit(request, context, rows)
        np.testing.assert_array_equal(prediction.outputs, fake_answer(Batch(context, rows)))

    await asyncio.gather(*(ask(int(num_rows)) for num_rows in draw.integers(1, 20, size=200)))
    await batcher.close()
