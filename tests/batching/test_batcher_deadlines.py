"""Deadlines and priorities through the shell: refused, expired, or answered; and a device that hangs."""

import asyncio
import logging

import pytest
from batcher_harness import TIMEOUT_S, A, B, Harness, HeldDevice, VirtualClock, serving, turns

from serve.core import Priority
from serve.core.errors import DeadlineExceeded, DeadlineTooShort, Overloaded
from serve.engine.fake import FakeEngine

SECONDS = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
SOON_S = 0.01
"""So far ahead the alarm is set on the real clock; whether a deadline has passed is asked of the virtual one."""


async def test_a_request_that_would_be_late_is_refused_at_once() -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock, max_batch_rows=8) as harness:
        harness.batcher.add_context(A, SECONDS, max_backlog_s=30.0)
        first = harness.request()
        await gate.entered()
        clock.now += 0.5
        submit = harness.submit(harness.rows(), timeout_s=1.5)
        with pytest.raises(Overloaded) as refusal:
            submit.send(None)  # the first step: it neither waits nor meets the loop
        assert refusal.value.retry_after_s == pytest.approx(0.25)
        assert harness.value("refused_requests_total", model="m", reason="deadline") == 1
        second = harness.request(timeout_s=1.751)
        await turns()
        gate.open()
        for ask in (first, second):
            await ask.answered()


async def test_a_request_that_expires_in_the_queue_is_not_computed() -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock) as harness:
        first = harness.request()
        await gate.entered()
        late, patient = harness.request(2, timeout_s=SOON_S), harness.request(3)
        await turns()
        assert harness.queued_rows == 5
        clock.now += 1.0
        error = await late.failed()
        assert isinstance(error, DeadlineExceeded)
        assert "within the 10 ms" in str(error)
        assert not first.task.done(), "told while the device is at work, not after it"
        assert harness.queued_rows == 3
        gate.let_through()
        assert len((await gate.entered()).rows) == 3
        gate.open()
        for ask in (first, patient):
            await ask.answered()
        assert harness.value("expired_requests_total", model="m", stage="queued") == 1


async def test_expired_at_the_moment_of_the_cut_is_not_computed() -> None:
    """The alarm did not ring yet."""
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock) as harness:
        first = harness.request()
        await gate.entered()
        late, patient = harness.request(2, timeout_s=60.0), harness.request(3, timeout_s=120.0)
        await turns()
        clock.now += 60.0
        gate.let_through()
        assert len((await gate.entered()).rows) == 3
        assert isinstance(await late.failed(), DeadlineExceeded)
        gate.open()
        await first.answered()
        await patient.answered()


async def test_nobody_waits_for_the_device_beyond_the_deadline() -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock, max_queue_delay_ms=3_600_000, max_batch_rows=3) as harness:
        late, mate = harness.request(1, timeout_s=SOON_S), harness.request(2, timeout_s=60.0)
        await gate.entered()
        clock.now += 1.0
        assert isinstance(await late.failed(), DeadlineExceeded)
        assert not mate.task.done()
        gate.open()
        assert (await mate.answered()).batch_rows == 3
        assert harness.value("expired_requests_total", model="m", stage="in_flight") == 1


async def test_the_alarm_is_set_anew_for_the_next_deadline() -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock) as harness:
        await_first = harness.request(timeout_s=3 * SOON_S)
        await gate.entered()
        asks = [harness.request(timeout_s=factor * SOON_S) for factor in (2, 1)]
        await turns()
        for ask in (asks[1], asks[0], await_first):
            clock.now += SOON_S
            assert isinstance(await ask.failed(), DeadlineExceeded)
        gate.open()
        await asyncio.wait_for(harness.batcher.drain(TIMEOUT_S), TIMEOUT_S)


async def test_a_deadline_in_the_past_is_no_request() -> None:
    async with serving(FakeEngine()) as harness:
        assert isinstance(await harness.request(timeout_s=0.0).failed(), DeadlineExceeded)


async def test_each_request_has_its_own_deadline_whatever_its_context() -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock) as harness:
        harness.batcher.add_context(A, {1: 1e-6}, max_backlog_s=1e9)
        keeper = harness.request(context=B)
        await gate.entered()
        short, long = harness.request(context=A, timeout_s=SOON_S), harness.request(context=B)
        await turns()
        clock.now += 1.0
        assert isinstance(await short.failed(), DeadlineExceeded)
        gate.open()
        await keeper.answered()
        await long.answered()


async def test_a_batch_that_hangs_fails_the_health_check_until_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock, hung_batch_factor=20, max_batch_rows=8) as harness:
        harness.batcher.add_context(A, SECONDS, max_backlog_s=1e6)
        ask = harness.request()
        await gate.entered()
        clock.now += 20.0
        assert not harness.batcher.failed
        clock.now += 0.1
        assert harness.batcher.failed
        gate.open()
        await ask.answered()
        assert not harness.batcher.failed
        await harness.request().answered()
    assert "a batch of 1 rows took 20.1 s" in caplog.text


async def test_interactive_goes_before_bulk_and_rides_with_its_rest() -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock, max_batch_rows=8, max_bulk_batch_ms=1_000) as harness:
        harness.batcher.add_context(A, SECONDS, max_backlog_s=1e6)
        bulk = harness.request(20, priority=Priority.BULK)
        await gate.entered()
        interactive = harness.request(2)
        await turns()
        assert harness.value("queued_rows", priority="bulk") == 12
        assert harness.value("queued_rows", priority="interactive") == 2
        gate.let_through()
        batch = await gate.entered()
        assert batch.rows[:2].tolist() == interactive.rows.tolist()
        assert batch.rows[2:].tolist() == bulk.rows[8:14].tolist()
        gate.open()
        assert (await interactive.answered()).batch_rows == 8
        await bulk.answered()


async def test_costs_are_learned_and_compared_with_what_was_predicted() -> None:
    clock = VirtualClock()

    def compute(_: object) -> None:
        clock.now += 2.0

    async with serving(FakeEngine(gate=compute), clock, max_batch_rows=8) as harness:
        harness.batcher.add_context(A, SECONDS, max_backlog_s=1e6)
        await harness.request(8).answered()
        await turns()
        assert harness.value("batch_cost_ratio_sum", model="m") == pytest.approx(2.0)
        assert await seconds_of_eight(harness) == pytest.approx(1.2)


async def seconds_of_eight(harness: Harness) -> float:
    refused = await harness.request(8, timeout_s=1e-6).failed()
    assert isinstance(refused, DeadlineTooShort)
    return float(str(refused).split("about ")[1].split(" ms")[0]) / 1e3


async def test_nothing_of_it_is_logged_as_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    gate, clock = HeldDevice(), VirtualClock()
    async with serving(FakeEngine(gate=gate), clock) as harness:
        first = harness.request()
        await gate.entered()
        late = harness.request(timeout_s=SOON_S)
        await turns()
        clock.now += 1.0
        await late.failed()
        gate.open()
        await first.answered()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
