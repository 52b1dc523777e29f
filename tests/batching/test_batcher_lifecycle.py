"""Start, work on the device, drain, close, and the end that nobody planned."""

import asyncio
import logging
import threading
import time

import pytest
from batcher_harness import TIMEOUT_S, HeldDevice, serving, turns

from serve.batching import Batcher
from serve.core import Prediction
from serve.core.errors import Draining, EngineError
from serve.engine.fake import FakeEngine
from serve.settings import BatchingSettings
from serve.telemetry.prometheus import PrometheusRecorder


async def test_drain_answers_what_is_queued_and_in_flight_and_admits_nothing() -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), max_queue_delay_ms=3_600_000, max_batch_rows=2) as harness:
        in_flight = harness.request(2)
        await gate.entered()
        queued = harness.request()
        await turns()
        drains = [asyncio.create_task(harness.batcher.drain(TIMEOUT_S)) for _ in range(2)]
        await turns()
        assert isinstance(await harness.request().failed(), Draining)
        gate.let_through()
        await in_flight.answered()
        await gate.entered()
        await turns()
        assert not any(drain.done() for drain in drains), "one is in flight"
        gate.open()
        await asyncio.wait_for(asyncio.gather(*drains), TIMEOUT_S)
        assert queued.task.done()
        await queued.answered()
        await harness.batcher.drain(TIMEOUT_S)


async def test_drain_ends_the_wait_for_company() -> None:
    async with serving(FakeEngine(), max_queue_delay_ms=3_600_000) as harness:
        ask = harness.request()
        await turns()
        await asyncio.wait_for(harness.batcher.drain(TIMEOUT_S), TIMEOUT_S)
        await ask.answered()


async def test_drain_gives_up_in_time_and_close_fails_the_rest() -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate)) as harness:
        asks = [harness.request()]
        await gate.entered()
        asks.append(harness.request())
        await turns()
        await harness.batcher.drain(0.01)
        assert not any(ask.task.done() for ask in asks)
        closing = asyncio.create_task(harness.batcher.close())
        for ask in asks:
            assert isinstance(await ask.failed(), Draining)
        assert not closing.done(), "the device is still at work"
        gate.open()
        await asyncio.wait_for(asyncio.gather(closing, harness.batcher.close()), TIMEOUT_S)
        assert isinstance(await harness.request().failed(), Draining)
        with pytest.raises(Draining):
            await harness.batcher.run_on_device(lambda: None)


async def test_drain_and_close_of_a_batcher_that_never_started(metrics: PrometheusRecorder) -> None:
    batcher = Batcher(FakeEngine(), BatchingSettings(), metrics)
    await asyncio.wait_for(batcher.drain(TIMEOUT_S), TIMEOUT_S)
    await asyncio.wait_for(batcher.close(), TIMEOUT_S)


async def test_close_before_the_task_had_a_turn_leaves_nobody_waiting() -> None:
    async with serving(FakeEngine()) as harness:
        ask = harness.request()
        await harness.batcher.close()
        assert isinstance(await ask.failed(), Draining)


async def test_close_stops_task_and_thread(metrics: PrometheusRecorder) -> None:
    before = set(threading.enumerate()), asyncio.all_tasks()
    batcher = Batcher(FakeEngine(), BatchingSettings(), metrics)
    await batcher.start()
    device_thread = await batcher.run_on_device(threading.current_thread)
    assert device_thread not in before[0]
    await batcher.close()
    assert not device_thread.is_alive()
    assert asyncio.all_tasks() == before[1]


async def test_work_on_the_device_passes_its_result_and_its_exception() -> None:
    async with serving(FakeEngine()) as harness:
        assert await harness.batcher.run_on_device(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await harness.batcher.run_on_device(lambda: 1 // 0)

        def stop() -> None:
            raise StopIteration

        with pytest.raises(RuntimeError):
            await asyncio.wait_for(harness.batcher.run_on_device(stop), TIMEOUT_S)
        await harness.request().answered()


async def test_death_of_the_task_is_loud_and_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    broken = False
    callers: list[asyncio.Task[Prediction]] = []

    def clock() -> float:
        if broken and asyncio.current_task() not in callers:
            raise OSError("no clock")
        return time.monotonic()

    async with serving(FakeEngine(), clock) as harness:
        await harness.request().answered()
        assert not harness.batcher.failed
        broken = True
        asks = [harness.request() for _ in range(3)]
        callers.extend(ask.task for ask in asks)
        for ask in asks:
            assert isinstance(await ask.failed(), EngineError)
        assert harness.batcher.failed
        broken = False
        assert isinstance(await harness.request().failed(), Draining)
        await asyncio.wait_for(harness.batcher.drain(TIMEOUT_S), TIMEOUT_S)
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]


async def test_cancelled_task_leaves_nobody_waiting() -> None:
    """As at the end of an event loop, which cancels every task."""
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate)) as harness:
        asks = [harness.request()]
        await gate.entered()
        asks.append(harness.request())
        await turns()
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "batcher"]
        task.cancel()
        for ask in asks:
            assert isinstance(await ask.failed(), Draining)
        assert isinstance(await harness.request().failed(), Draining)
        gate.open()
