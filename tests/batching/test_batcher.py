"""What rides together and when. "fault n" is row n of the table in notes/style.md, section 4."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
from batcher_harness import TIMEOUT_S, A, B, HeldDevice, WrongEngine, serving, turns

from serve.core import Matrix
from serve.core.errors import Overloaded
from serve.engine.fake import FakeEngine


async def test_lone_request_is_answered_without_a_timer() -> None:
    """fault 4"""
    async with serving(FakeEngine()) as harness:
        prediction = await harness.request(3).answered()
        assert prediction.batch_rows == 3
        assert prediction.timing.queue_ms >= 0
        assert prediction.timing.compute_ms >= 0


async def test_idle_batcher_does_not_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """fault 4: no timer is left, which every waiting with an end needs, and no spinning, which reads the clock."""
    loop = asyncio.get_running_loop()
    call_at, timers, reads = loop.call_at, list[asyncio.TimerHandle](), 0

    def keep_timer(*args: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(call_at(*args, **options))
        return timers[-1]

    def count_read() -> float:
        nonlocal reads
        reads += 1
        return time.monotonic()

    monkeypatch.setattr(loop, "call_at", keep_timer)
    async with serving(FakeEngine(), count_read) as harness:
        await harness.submit(harness.rows())
        await turns()
        [deadline] = timers
        assert deadline.cancelled()
        reads_before = reads
        await turns(100)
        assert (len(timers), reads) == (1, reads_before)
        await harness.request().answered()
        assert reads > reads_before, "the clock is the one that the batcher reads"


async def test_what_queued_while_the_device_was_busy_rides_together() -> None:
    """fault 3: the delay is 0"""
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate)) as harness:
        first = harness.request()
        await gate.entered()
        rest = [harness.request(num_rows) for num_rows in (2, 1, 3)]
        await turns()
        assert harness.value("queued_requests") == 3
        assert harness.value("queued_rows", priority="interactive") == 6
        assert harness.value("in_flight_requests") == 1
        gate.let_through()
        assert len((await gate.entered()).rows) == 6
        assert harness.value("in_flight_requests") == 3
        gate.let_through()
        assert (await first.answered()).batch_rows == 1
        assert [(await ask.answered()).batch_rows for ask in rest] == [6, 6, 6]


async def test_contexts_do_not_mix() -> None:
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate)) as harness:
        gate_keeper = harness.request()
        await gate.entered()
        asks = [harness.request(1, context) for context in (A, B, A, B)]
        await turns()
        gate.let_through(3)
        batches = [await gate.entered() for _ in range(2)]
        assert [batch.context for batch in batches] == [A, B]
        for ask in [gate_keeper, *asks]:
            await ask.answered()


async def test_request_waits_for_company_and_no_longer_than_the_delay() -> None:
    """fault 2"""
    async with serving(FakeEngine(), max_queue_delay_ms=20) as harness:
        first, second = harness.request(), harness.request()
        prediction = await first.answered()
        assert prediction.batch_rows == 2
        assert prediction.timing.queue_ms >= 20
        await second.answered()


async def test_full_batch_ends_the_wait() -> None:
    async with serving(FakeEngine(), max_queue_delay_ms=3_600_000, max_batch_rows=4) as harness:
        asks = [harness.request(2)]
        await turns()
        assert harness.value("queued_requests") == 1
        asks.append(harness.request(2))
        assert [(await ask.answered()).batch_rows for ask in asks] == [4, 4]


async def test_request_that_waited_for_the_device_does_not_wait_again() -> None:
    """fault 2"""
    now = 0.0
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), lambda: now, max_queue_delay_ms=5_000, max_batch_rows=2) as harness:
        full = harness.request(2)
        await gate.entered()
        late = harness.request()
        await turns()
        now = 6.0
        gate.let_through(2)
        await full.answered()
        assert (await late.answered()).timing.queue_ms == 6_000


async def test_one_batch_on_the_device_at_a_time() -> None:
    """fault 5; FakeEngine itself fails a second thread"""
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), max_batch_rows=1) as harness:
        asks = [harness.request() for _ in range(5)]
        for left in range(4, -1, -1):
            await gate.entered()
            await turns(20)
            assert harness.value("in_flight_requests") == 1
            assert harness.value("queued_requests") == left
            gate.let_through()
        for ask in asks:
            await ask.answered()


async def test_full_means_overloaded_at_once() -> None:
    """fault 9"""
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), max_ongoing_requests=3) as harness:
        asks = [harness.request() for _ in range(3)]
        await gate.entered()
        submit = harness.submit(harness.rows())
        with pytest.raises(Overloaded) as refusal:
            submit.send(None)  # the first step: it neither waits nor meets the loop
        assert refusal.value.retry_after_s > 0
        asks[2].task.cancel()
        await turns()
        asks[2] = harness.request()
        gate.open()
        for ask in asks:
            await ask.answered()
        await harness.request().answered()


async def test_only_the_engine_runs_on_the_device_thread() -> None:
    """fault 10: answers are split and resolved on the event loop, whose debug mode fails calls from other threads."""
    asyncio.get_running_loop().set_debug(True)
    splits: set[int] = set()
    engines: set[int] = set()

    class Spy(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            splits.add(threading.get_ident())
            return super().__getitem__(key)

    def spy(answer: Matrix) -> Matrix:
        engines.add(threading.get_ident())
        return answer.view(Spy)

    async with serving(WrongEngine(spy)) as harness:
        for _ in range(3):
            await harness.request(2).answered()
        engines.add(await harness.batcher.run_on_device(threading.get_ident))
    assert splits == {threading.get_ident()}
    assert len(engines) == 1
    assert not splits & engines


async def test_device_does_not_wait_until_answers_are_handed_out() -> None:
    """The next batch is on its way before the last one is split."""
    in_flight: list[float] = []

    class Spy(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            in_flight.append(harness.value("in_flight_requests"))
            return super().__getitem__(key)

    async with serving(WrongEngine(lambda answer: answer.view(Spy)), max_batch_rows=1) as harness:
        first, second = harness.request(), harness.request()
        await asyncio.wait([first.task, second.task])
        assert in_flight == [1, 0]


async def test_many_callers_share_batches_and_each_gets_its_own() -> None:
    async with serving(FakeEngine(lambda _: 0.005)) as harness:
        asks = [harness.request(1 + i % 3, (A, B)[i % 2]) for i in range(64)]
        for ask in asks:
            await ask.answered()
        await turns()
        num_batches = harness.value("batch_rows_count", model="m")
        assert harness.value("batch_rows_sum", model="m") == sum(len(ask.rows) for ask in asks)
        assert harness.value("batch_requests_sum", model="m") == 64
        assert harness.value("batch_rows_sum", model="m") / num_batches > 10
        assert harness.value("queue_seconds_count", model="m") == 64
        assert harness.value("batch_seconds_sum", model="m") >= 0.005 * num_batches


async def test_arrivals_over_time_share_batches() -> None:
    """Closed loop: 64 callers, each asking again when answered."""
    async with serving(FakeEngine(lambda num_rows: 0.001 + 1e-5 * num_rows)) as harness:

        async def caller() -> None:
            for _ in range(5):
                await harness.request().answered()

        await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(64))), TIMEOUT_S)
        await turns()
        mean = harness.value("batch_rows_sum", model="m") / harness.value("batch_rows_count", model="m")
        assert harness.value("batch_rows_sum", model="m") == 320
        assert mean > 4
