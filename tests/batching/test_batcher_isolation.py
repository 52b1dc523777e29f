"""Faults of the device: only the culprit fails, memory that runs out is got along with, a broken engine is told."""

import asyncio
import logging

import hypothesis.strategies as st
import numpy as np
import pytest
from batcher_harness import TIMEOUT_S, A, Ask, Harness, HeldDevice, WrongEngine, serving, turns
from hypothesis import given, settings

from serve.core import Batch, Matrix
from serve.core.errors import DeviceLost, Draining, EngineError, OutOfMemory
from serve.engine.fake import FakeEngine

POISON = -0.5


class Poisoned:
    """A gate that holds batches, and fails those that hold a poisoned row."""

    def __init__(self, gate: HeldDevice) -> None:
        self.gate = gate
        self.sizes: list[int] = []

    def __call__(self, batch: Batch) -> None:
        self.gate(batch)
        self.sizes.append(len(batch.rows))
        if POISON in batch.rows:
            raise RuntimeError("a poisoned row")


class SmallMemory:
    """A gate of a device that holds `most` rows at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, batch: Batch) -> None:
        self.sizes.append(len(batch.rows))
        if len(batch.rows) > self.most:
            raise OutOfMemory(f"{len(batch.rows)} rows")


def poisoned(harness: Harness, num_rows: int = 1) -> Ask:
    return Ask(harness, A, np.full((num_rows, 3), POISON))


async def test_of_many_only_the_culprit_fails() -> None:
    gate = HeldDevice()
    engine = Poisoned(gate)
    async with serving(FakeEngine(gate=engine)) as harness:
        keeper = harness.request()
        await gate.entered()
        asks = [harness.request() for _ in range(11)]
        culprit = poisoned(harness)
        asks += [harness.request() for _ in range(4)]
        await turns()
        gate.open()
        assert isinstance(await culprit.failed(), EngineError)
        for ask in (keeper, *asks):
            await ask.answered()
        assert engine.sizes == [1, 16, 8, 8, 4, 2, 2, 1, 1, 4]
        assert harness.value("bisected_batches_total", model="m") == 4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12))
def test_any_subset_of_culprits(requests: list[tuple[int, bool]]) -> None:
    asyncio.run(_any_subset_of_culprits(requests))


async def _any_subset_of_culprits(requests: list[tuple[int, bool]]) -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=Poisoned(gate)), max_batch_rows=16) as harness:
        keeper = harness.request()
        await gate.entered()
        asks = [
            (poisoned(harness, num_rows) if is_culprit else harness.request(num_rows), is_culprit)
            for num_rows, is_culprit in requests
        ]
        await turns()
        gate.open()
        await keeper.answered()
        for ask, is_culprit in asks:
            if is_culprit:
                assert isinstance(await ask.failed(), EngineError)
            else:
                await ask.answered()


async def test_what_failed_is_logged_once_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=Poisoned(gate))) as harness:
        keeper = harness.request()
        await gate.entered()
        asks = [poisoned(harness) for _ in range(5)]
        await turns()
        gate.open()
        for ask in asks:
            await ask.failed()
        await keeper.answered()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "5 requests, 5 rows, the engine failed on 5 requests" in record.getMessage()
    assert "a poisoned row" in caplog.text


async def test_a_fault_that_does_not_come_again_fails_nobody() -> None:
    faults = [RuntimeError("once")]
    gate = HeldDevice()

    def fail_once(batch: Batch) -> None:
        gate(batch)
        if len(batch.rows) > 1 and faults:
            raise faults.pop()

    async with serving(FakeEngine(gate=fail_once)) as harness:
        keeper = harness.request()
        await gate.entered()
        asks = [harness.request() for _ in range(4)]
        await turns()
        gate.open()
        for ask in (keeper, *asks):
            await ask.answered()


async def test_a_caller_who_left_is_not_computed_when_his_batch_is_tried_again() -> None:
    gate = HeldDevice()
    engine = Poisoned(gate)
    async with serving(FakeEngine(gate=engine)) as harness:
        keeper = harness.request()
        await gate.entered()
        asks = [harness.request(2), poisoned(harness), harness.request(3)]
        await turns()
        gate.let_through()
        assert len((await gate.entered()).rows) == 6
        asks[2].task.cancel()
        await turns()
        gate.open()
        await asks[0].answered()
        await asks[1].failed()
        await keeper.answered()
        await asyncio.wait_for(harness.batcher.drain(TIMEOUT_S), TIMEOUT_S)
    assert engine.sizes == [1, 6, 2, 1]


async def test_out_of_memory_is_got_along_with_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    memory = SmallMemory(most=5)
    async with serving(FakeEngine(gate=memory), max_batch_rows=16, max_queue_delay_ms=3_600_000) as harness:
        asks = [harness.request(num_rows) for num_rows in (7, 1, 1, 7)]
        for ask in asks:
            await ask.answered()
        assert memory.sizes == [16, 8, 4, 4, 8, 4, 4]
        assert harness.value("out_of_memory_total", model="m") == 3
        memory.sizes.clear()
        large = harness.request(12)
        await large.answered()
        assert memory.sizes == [4, 4, 4], "the budget was lowered"
    assert "out of memory at 16 rows of m; at most 8 from now" in caplog.text


async def test_a_row_for_which_there_is_no_memory_fails_alone() -> None:
    memory = SmallMemory(most=0)
    async with serving(FakeEngine(gate=memory), max_batch_rows=4) as harness:
        error = await harness.request().failed()
        assert type(error) is EngineError
        memory.most = 4
        await harness.request().answered()


async def test_a_wrong_number_of_rows_is_everybodys_and_an_alarm() -> None:
    engine = WrongEngine(lambda answer: answer[:-1])
    async with serving(engine, max_queue_delay_ms=3_600_000, max_batch_rows=3) as harness:
        for ask in [harness.request(), harness.request(2)]:
            assert isinstance(await ask.failed(), EngineError)
        assert harness.value("wrong_answers_total", model="m") == 1
        assert harness.value("bisected_batches_total", model="m") == 0
        engine.spoil = None
        await harness.request(3).answered()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
async def test_an_answer_that_is_no_number_fails_its_own_request_and_is_an_alarm(
    number: float, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(answer: Matrix) -> Matrix:
        spoiled = answer.copy()
        spoiled[2, 1] = number
        return spoiled

    engine = WrongEngine(spoil)
    async with serving(engine, max_queue_delay_ms=3_600_000, max_batch_rows=4) as harness:
        first, bad, last = harness.request(), harness.request(2), harness.request()
        assert isinstance(await bad.failed(), EngineError)
        await first.answered()
        await last.answered()
        assert harness.value("non_finite_answers_total", model="m") == 1
        assert "in a batch of 3 requests, 4 rows, the engine failed on 1 requests" in caplog.text
        engine.spoil = None
        await harness.request(4).answered()


async def test_a_large_request_with_one_such_answer_fails_once_and_its_rest_is_not_computed() -> None:
    engine = WrongEngine(lambda answer: np.full_like(answer, np.nan))
    async with serving(engine, max_batch_rows=2) as harness:
        assert isinstance(await harness.request(9).failed(), EngineError)
        engine.spoil = None
        await harness.request(2).answered()
        assert 1 <= harness.value("non_finite_answers_total", model="m") <= 2  # a batch may be on its way already


async def test_a_lost_device_is_everybodys_end() -> None:
    def lose(_: Batch) -> None:
        raise DeviceLost("its process ended")

    async with serving(FakeEngine(gate=lose), max_queue_delay_ms=3_600_000, max_batch_rows=3) as harness:
        asks = [harness.request() for _ in range(5)]  # a batch, and two who wait
        for ask in asks:
            assert isinstance(await ask.failed(), EngineError)
        assert harness.value("bisected_batches_total", model="m") == 0
        assert harness.batcher.failed
        assert isinstance(await harness.request().failed(), Draining)
