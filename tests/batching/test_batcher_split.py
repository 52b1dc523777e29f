"""Requests larger than a batch: split, and joined again in order; or failed, expired, cancelled and drained as one."""

import asyncio

import numpy as np
import pytest
from batcher_harness import TIMEOUT_S, A, Ask, B, HeldDevice, VirtualClock, serving, turns

from serve.core import Batch, Priority
from serve.core.errors import DeadlineExceeded, Draining, EngineError
from serve.engine.fake import FakeEngine


@pytest.mark.parametrize("priority", Priority)
async def test_a_large_request_is_answered_row_for_row(priority: Priority) -> None:
    sizes: list[int] = []
    engine = FakeEngine(gate=lambda batch: sizes.append(len(batch.rows)))
    async with serving(engine, max_batch_rows=8) as harness:
        prediction = await harness.request(21, priority=priority).answered()
        assert sizes == [8, 8, 5]
        assert prediction.batch_rows == 5
        await turns()
        assert harness.value("queue_seconds_count", model="m") == 1
        assert harness.value("batch_rows_sum", model="m") == 21


async def test_its_timing_is_that_of_all_its_batches() -> None:
    clock = VirtualClock()

    def compute(_: Batch) -> None:
        clock.now += 2.0

    async with serving(FakeEngine(gate=compute), clock, max_batch_rows=8) as harness:
        prediction = await harness.request(24, timeout_s=1e6).answered()
        assert prediction.timing.queue_ms == 0
        assert prediction.timing.compute_ms == pytest.approx(6_000)


async def test_small_ones_ride_with_the_rest_of_a_large_one() -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), max_batch_rows=8) as harness:
        large = harness.request(13)
        await gate.entered()
        small = [harness.request(1) for _ in range(5)]
        await turns()
        gate.open()
        assert [(await ask.answered()).batch_rows for ask in (large, *small)] == [8, 8, 8, 8, 2, 2]


async def test_a_part_that_fails_fails_the_whole_and_the_rest_is_not_computed() -> None:
    gate = HeldDevice()

    def fail_second(batch: Batch) -> None:
        gate(batch)
        if -0.5 in batch.rows:
            raise RuntimeError("device")

    async with serving(FakeEngine(gate=fail_second), max_batch_rows=8) as harness:
        rows = harness.rows(32)
        rows[10] = -0.5
        large = Ask(harness, A, rows)
        await gate.entered()
        small = harness.request(1)
        await turns()
        gate.let_through(2)
        assert len((await gate.entered()).rows) == 8
        assert isinstance(await large.failed(), EngineError)
        assert len((await gate.entered()).rows) == 1, "the small one alone"
        gate.open()
        await small.answered()


@pytest.mark.parametrize("end", ["cancel", "expire"])
async def test_the_rest_of_one_who_has_gone_is_not_computed(end: str) -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock, max_batch_rows=8) as harness:
        large, small = harness.request(32, timeout_s=0.01), harness.request(1, context=B)
        await gate.entered()
        if end == "cancel":
            large.task.cancel()
            await turns()
        else:
            clock.now += 1.0
            assert isinstance(await large.failed(), DeadlineExceeded)
        assert harness.queued_rows == 1
        gate.let_through()
        assert (await gate.entered()).context is B
        gate.open()
        await small.answered()


async def test_a_drain_answers_what_was_split() -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), max_batch_rows=4) as harness:
        large = harness.request(15)
        await gate.entered()
        drain = asyncio.create_task(harness.batcher.drain(TIMEOUT_S))
        await turns()
        gate.open()
        await large.answered()
        await asyncio.wait_for(drain, TIMEOUT_S)


async def test_close_fails_what_was_split() -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), max_batch_rows=4) as harness:
        large = harness.request(15)
        await gate.entered()
        closing = asyncio.create_task(harness.batcher.close())
        assert isinstance(await large.failed(), Draining)
        gate.open()
        await asyncio.wait_for(closing, TIMEOUT_S)


async def test_the_answer_of_a_split_request_is_its_own_memory() -> None:
    async with serving(FakeEngine(), max_batch_rows=4) as harness:
        first, second = harness.request(9), harness.request(9)
        outputs = (await first.answered()).outputs
        assert not np.shares_memory(outputs, (await second.answered()).outputs)
