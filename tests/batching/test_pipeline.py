"""Two batches in flight: what is cut ahead and when, and that neither batch harms the other."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from batcher_harness import TIMEOUT_S, A, Ask, B, Harness, HeldDevice, VirtualClock, WrongEngine, serving, turns

from serve.core import Batch, Launched, Matrix, Priority
from serve.core.errors import DeadlineExceeded, DeviceLost, Draining, EngineError, OutOfMemory, Overloaded
from serve.engine.fake import FakeEngine, fake_answer

POISON = -0.5
SECONDS = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}


class Gpu(FakeEngine):
    """Counts what was launched. Its answers are computed when they are collected."""

    def __init__(self, gate: HeldDevice | None = None) -> None:
        super().__init__(gate=gate, max_in_flight=2)
        self.launched: list[int] = []
        self.launching = threading.Semaphore(0)

    def launch(self, batch: Batch) -> Launched:
        launched = super().launch(batch)
        self.launched.append(len(batch.rows))
        self.launching.release()
        return launched

    async def has_launched(self, *sizes: int) -> None:
        """Wait until so many batches were launched, and check their rows."""
        while len(self.launched) < len(sizes):
            assert await asyncio.to_thread(self.launching.acquire, timeout=TIMEOUT_S)
        assert self.launched == list(sizes)


@asynccontextmanager
async def pipeline(
    engine: FakeEngine | None = None, clock: VirtualClock | None = None, **batching: float
) -> AsyncIterator[tuple[Harness, Gpu, HeldDevice, VirtualClock]]:
    """A batcher whose batches take a second each by the virtual clock; the gate holds what is collected."""
    gate, clock = HeldDevice(), clock or VirtualClock()
    gpu = Gpu(gate)
    async with serving(engine or gpu, clock, **{"max_batch_rows": 8, **batching}) as harness:
        for context in (A, B):
            harness.batcher.add_context(context, SECONDS, max_backlog_s=1e6)
        try:
            yield harness, gpu, gate, clock
        finally:
            gate.open()


async def wake(harness: Harness) -> None:
    """The timer of the batch ahead runs on the real clock; whether the batch is due is asked of the virtual one."""
    harness.batcher._wake.set()
    await turns()


async def test_a_batch_ahead_is_cut_shortly_before_the_end_of_the_batch_on_the_device() -> None:
    async with pipeline() as (harness, gpu, gate, clock):
        first = harness.request()
        await gate.entered()
        early = harness.request(2)
        await turns()
        clock.now += 0.9
        await wake(harness)
        assert gpu.launched == [1], "rows that arrive now can still ride"
        late = harness.request(3)
        await turns()
        clock.now += 0.0995
        await wake(harness)
        await gpu.has_launched(1, 5)
        missed = harness.request()
        await turns()
        assert harness.value("in_flight_requests") == 3
        assert harness.value("queued_requests") == 1
        gate.open()
        assert [(await ask.answered()).batch_rows for ask in (first, early, late, missed)] == [1, 5, 5, 1]


async def test_a_full_batch_is_cut_ahead_at_once_and_never_a_third() -> None:
    async with pipeline() as (harness, gpu, gate, _):
        asks = [harness.request()]
        await gate.entered()
        asks.append(harness.request(7))
        await turns()
        assert gpu.launched == [1]
        asks.append(harness.request(9))
        await gpu.has_launched(1, 8)
        await turns()
        assert harness.queued_rows == 8, "another full batch"
        gate.let_through()
        await asks[0].answered()
        await gpu.has_launched(1, 8, 8)
        gate.open()
        for ask in asks:
            await ask.answered()


async def test_bulk_rows_alone_are_not_cut_ahead_at_once() -> None:
    """They would keep an interactive request waiting that arrives before the end of the batch on the device."""
    async with pipeline(max_bulk_batch_ms=1_100) as (harness, gpu, gate, clock):
        bulk = harness.request(24, priority=Priority.BULK)
        await gate.entered()
        await turns()
        assert gpu.launched == [8]
        interactive = harness.request()
        clock.now += 0.9995
        await wake(harness)
        await gpu.has_launched(8, 8)
        second = harness.request()
        await turns()
        gate.let_through()
        assert (await gate.entered()).rows[0].tolist() == interactive.rows[0].tolist()
        clock.now += 0.9995
        await wake(harness)
        await gpu.has_launched(8, 8, 8)
        gate.open()
        assert [(await ask.answered()).batch_rows for ask in (interactive, second)] == [8, 8]
        await bulk.answered()


async def test_bulk_rows_that_have_ended_delay_nobody_who_comes_afterwards() -> None:
    async with pipeline(max_bulk_batch_ms=1_100) as (harness, gpu, gate, _):
        bulk = harness.request(16, priority=Priority.BULK)
        await gate.entered()
        full = harness.request(8)
        await gpu.has_launched(8, 8)
        gate.let_through()
        await gate.entered()
        await turns()
        last, first = harness.request(context=B, timeout_s=60.0), harness.request(timeout_s=20.0)
        await turns()
        gate.open()
        assert (await first.answered()).batch_rows == 8, "with bulk rows"
        for ask in (bulk, full, last):
            await ask.answered()


async def test_nothing_is_cut_ahead_while_a_request_waits_that_would_be_computed_in_vain() -> None:
    async with pipeline() as (harness, gpu, gate, clock):
        first = harness.request()
        await gate.entered()
        hurried = harness.request(timeout_s=3.0)
        await turns()
        clock.now += 2.2  # the batch on the device is late by 1.2 s, so it is expected to take as long again
        patient = harness.request(8, timeout_s=60.0)
        await wake(harness)
        assert gpu.launched == [1]
        clock.now += 0.8
        await wake(harness)
        assert isinstance(await hurried.failed(), DeadlineExceeded)
        await gpu.has_launched(1, 8)
        gate.open()
        await first.answered()
        await patient.answered()


async def test_admission_counts_both_batches_in_flight() -> None:
    async with pipeline() as (harness, gpu, gate, _):
        asks = [harness.request(), harness.request(8)]
        await gate.entered()
        asks.append(harness.request(8))
        await gpu.has_launched(8, 8)
        assert isinstance(await harness.request(timeout_s=1.5 * 2.0 + 0.9).failed(), Overloaded)
        asks.append(harness.request(timeout_s=1.5 * 3.0 + 1.1))
        await turns()
        gate.open()
        for ask in asks:
            await ask.answered()


@pytest.mark.parametrize("fails", ["front", "ahead", "both"])
async def test_a_batch_that_fails_leaves_the_other_alone(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    async with pipeline(FailsOn(POISON)) as (harness, _, _, _):
        engine: FailsOn = harness.batcher._device._engine  # type: ignore[assignment]
        culprits = {"front": [0], "ahead": [1], "both": [0, 1]}[fails]
        asks = []
        for number in range(2):
            rows = harness.rows(2)
            if number in culprits:
                rows[:] = POISON
            asks += [Ask(harness, A, rows), harness.request(6)]
        while len(engine.launched) < 2:
            assert await asyncio.to_thread(engine.launching.acquire, timeout=TIMEOUT_S)
        engine.release.set()
        for number, ask in enumerate(asks):
            if number in [2 * culprit for culprit in culprits]:
                assert isinstance(await ask.failed(), EngineError)
            else:
                await ask.answered()
        assert engine.launched[:2] == [8, 8]
    logged = [record for record in caplog.records if "the engine failed on 1 requests" in record.getMessage()]
    assert len(logged) == len(culprits), "once for each batch"


class FailsOn(Gpu):
    """Fails the batches that hold a number, once it is released."""

    def __init__(self, poison: float) -> None:
        super().__init__()
        self.release = threading.Event()
        self.poison = poison

    def _compute(self, batch: Batch) -> Matrix:
        assert self.release.wait(TIMEOUT_S)
        if self.poison in batch.rows:
            raise RuntimeError("a poisoned row")
        return fake_answer(batch)


async def test_a_launch_that_fails_is_an_engine_fault_in_its_turn() -> None:
    class FailsToLaunch(Gpu):
        def launch(self, batch: Batch) -> Launched:
            if POISON in batch.rows:
                raise OutOfMemory("no room for the input")
            return super().launch(batch)

    async with pipeline(FailsToLaunch()) as (harness, _, _, _):
        culprit = Ask(harness, A, np.full((1, 3), POISON))
        others = [harness.request(4) for _ in range(4)]
        assert isinstance(await culprit.failed(), EngineError)
        for ask in others:
            await ask.answered()


@pytest.mark.parametrize("leaver", range(2))
async def test_a_caller_who_leaves_one_batch_harms_neither(leaver: int) -> None:
    async with pipeline() as (harness, gpu, gate, _):
        asks = [harness.request(7), harness.request(7)]
        mates = [harness.request(), harness.request()]
        await gpu.has_launched(8, 8)
        asks[leaver].task.cancel()
        await turns()
        gate.open()
        for ask in (asks[1 - leaver], *mates):
            await ask.answered()
        assert asks[leaver].task.cancelled()


async def test_a_request_in_both_batches_is_answered_whole() -> None:
    async with pipeline() as (harness, gpu, gate, _):
        large = harness.request(16)
        await gpu.has_launched(8, 8)
        assert harness.value("in_flight_requests") == 1
        gate.open()
        await large.answered()


async def test_nobody_waits_beyond_the_deadline_for_the_batch_ahead() -> None:
    async with pipeline() as (harness, gpu, gate, clock):
        first, ahead = harness.request(8), harness.request(8, timeout_s=3.0)
        await gpu.has_launched(8, 8)
        clock.now += 3.0
        harness.batcher._expire()
        assert isinstance(await ahead.failed(), DeadlineExceeded)
        assert harness.value("expired_requests_total", model="m", stage="in_flight") == 1
        gate.open()
        await first.answered()


async def test_work_on_the_device_waits_until_nothing_is_in_flight() -> None:
    async with pipeline() as (harness, gpu, gate, _):
        asks = [harness.request(8), harness.request(8)]
        await gpu.has_launched(8, 8)
        work = asyncio.create_task(harness.batcher.run_on_device(lambda: len(gpu._in_flight)))
        await turns()
        gate.let_through()
        await asks[0].answered()
        assert not work.done()
        gate.open()
        assert await asyncio.wait_for(work, TIMEOUT_S) == 0
        await asks[1].answered()


async def test_a_lost_device_fails_both_batches_and_admits_no_more() -> None:
    lost = threading.Event()

    class Lost(Gpu):
        def _compute(self, _: Batch) -> Matrix:
            assert lost.wait(TIMEOUT_S)
            raise DeviceLost("its process ended")

    engine = Lost()
    async with pipeline(engine) as (harness, _, _, _):
        asks = [harness.request(8), harness.request(8), harness.request()]
        await engine.has_launched(8, 8)
        lost.set()
        for ask in asks:
            assert isinstance(await ask.failed(), EngineError)
        assert harness.batcher.died
        assert isinstance(await harness.request().failed(), Draining)


async def test_a_wrong_answer_is_that_of_its_own_batch() -> None:
    engine = WrongEngine(lambda answer: answer[:-1] if len(answer) == 3 else answer, max_in_flight=2)
    async with pipeline(engine) as (harness, _, _, _):
        asks = [harness.request(8), harness.request(3)]
        await asks[0].answered()
        assert isinstance(await asks[1].failed(), EngineError)
        assert harness.value("wrong_answers_total", model="m") == 1


async def test_a_drain_answers_both_batches_and_the_queue() -> None:
    async with pipeline(max_queue_delay_ms=3_600_000) as (harness, gpu, gate, _):
        asks = [harness.request(8), harness.request(8), harness.request()]
        await gpu.has_launched(8, 8)
        drain = asyncio.create_task(harness.batcher.drain(TIMEOUT_S))
        await turns()
        gate.open()
        await asyncio.wait_for(drain, TIMEOUT_S)
        for ask in asks:
            await ask.answered()


async def test_close_fails_both_batches_and_waits_for_the_device() -> None:
    async with pipeline() as (harness, gpu, gate, _):
        asks = [harness.request(8), harness.request(8), harness.request()]
        await gpu.has_launched(8, 8)
        closing = asyncio.create_task(harness.batcher.close())
        for ask in asks:
            assert isinstance(await ask.failed(), Draining)
        assert not closing.done()
        gate.open()
        await asyncio.wait_for(closing, TIMEOUT_S)


async def test_a_front_that_hangs_fails_the_health_check_though_a_batch_is_behind_it() -> None:
    async with pipeline(hung_batch_factor=20) as (harness, gpu, gate, clock):
        asks = [harness.request(8, timeout_s=1e6), harness.request(8, timeout_s=1e6)]
        await gpu.has_launched(8, 8)
        clock.now += 20.1
        assert harness.batcher.failed
        gate.let_through()
        await asks[0].answered()
        assert not harness.batcher.failed, "the second has just begun"
        clock.now += 20.1
        assert harness.batcher.failed
        gate.open()
        await asks[1].answered()


async def test_what_is_learned_is_the_time_for_which_a_batch_kept_the_device() -> None:
    clock = VirtualClock()

    class Timed(Gpu):
        def _compute(self, batch: Batch) -> Matrix:
            clock.now += 3.0
            return super()._compute(batch)

    engine = Timed()
    async with pipeline(engine, clock, hung_batch_factor=1e6) as (harness, _, _, _):
        asks = [harness.request(8, timeout_s=1e6) for _ in range(4)]
        timings = [(await ask.answered()).timing.compute_ms for ask in asks]
        await turns()
        assert timings == [pytest.approx(3_000)] * 4
        assert harness.value("batch_cost_ratio_count", model="m") == 4
        predicted = [1.0]
        for _ in range(4):
            predicted.append(predicted[-1] + 0.2 * (min(3.0, 4 * predicted[-1]) - predicted[-1]))
        assert harness.batcher.cost_of(A).predict(8) == pytest.approx(predicted[-1])


async def test_an_idle_batcher_does_not_wake_up_and_arrivals_wake_it_only_where_they_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = 0

    class CountingClock(VirtualClock):
        def __call__(self) -> float:
            nonlocal reads
            reads += 1
            return super().__call__()

    async with pipeline(clock=CountingClock()) as (harness, gpu, gate, _):
        first = harness.request()
        await gate.entered()
        waiting = [harness.request()]
        await turns(20)
        wakes = []
        wake = harness.batcher._wake.set
        monkeypatch.setattr(harness.batcher._wake, "set", lambda: wakes.append(wake()))
        waiting += [harness.request() for _ in range(6)]
        await turns(20)
        assert not wakes, "the timer of the batch ahead is set"
        assert harness.queued_rows == 7
        waiting.append(harness.request())
        await gpu.has_launched(1, 8)
        assert len(wakes) == 1, "the batch ahead is full"
        gate.open()
        for ask in (first, *waiting):
            await ask.answered()
        await turns(20)
        before = reads
        await turns(100)
        assert reads == before


async def test_what_the_engine_says_of_its_preparation_is_learned() -> None:
    @dataclass
    class Prepared:
        launched: Launched
        prepared_s = 0.25

        def collect(self) -> Matrix:
            return self.launched.collect()

    class Prepares(Gpu):
        def launch(self, batch: Batch) -> Launched:
            return Prepared(super().launch(batch))

    async with pipeline(Prepares()) as (harness, _, _, clock):
        for _ in range(60):
            await harness.request(timeout_s=1e6).answered()
            clock.now += 1.0
        assert harness.batcher._pipeline is not None
        assert harness.batcher._pipeline._lead.seconds == pytest.approx(0.25, rel=0.05)


async def test_many_callers_share_batches_and_each_gets_its_own() -> None:
    engine = FakeEngine(lambda _: 0.003, max_in_flight=2)
    async with serving(engine, max_batch_rows=16) as harness:
        harness.batcher.add_context(A, {1: 0.003, 16: 0.003}, max_backlog_s=30.0)

        async def caller(number: int) -> None:
            for _ in range(5):
                await harness.request(1 + number % 3, (A, B)[number % 2]).answered()

        await asyncio.wait_for(asyncio.gather(*(caller(number) for number in range(48))), TIMEOUT_S)
        await turns()
        num_batches = harness.value("batch_rows_count", model="m")
        assert harness.value("batch_rows_sum", model="m") / num_batches > 5
        assert harness.value("in_flight_requests") == 0
