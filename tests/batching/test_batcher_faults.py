"""Whoever fails or goes away harms nobody else. "fault n" is row n of the table in notes/style.md, section 4."""

import asyncio
import logging
from collections.abc import Callable

import numpy as np
import pytest
from batcher_harness import A, Ask, HeldDevice, WrongEngine, serving, turns

from serve.core import Batch, Matrix, Prediction, QueryTable
from serve.core.errors import EngineError, InvalidInput
from serve.engine.fake import FakeEngine
from serve.telemetry.recorder import ComputedBatch


async def test_bad_input_is_refused_before_it_meets_a_batch() -> None:
    """fault 6"""
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate)) as harness:

        async def post(record: dict[str, object]) -> Prediction:
            rows = A.encode(QueryTable.from_records([record]))
            return await harness.submit(rows)

        good: dict[str, object] = {"a": 1, "b": 2, "c": 3}
        keeper = harness.request()
        await gate.entered()
        tasks = [asyncio.create_task(post(record)) for record in (good, {**good, "b": "x"}, good)]
        await turns()
        assert harness.value("queued_requests") == 2
        gate.open()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await keeper.answered()
        assert isinstance(outcomes[1], InvalidInput)
        assert [getattr(outcome, "batch_rows", None) for outcome in outcomes] == [2, None, 2]


async def test_a_recorder_that_raises_costs_no_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(FakeEngine()) as harness:
        before = harness.request(3)
        await before.answered()

        def broken(batch: ComputedBatch) -> None:
            raise RuntimeError(f"no room for {batch.num_rows} rows")

        monkeypatch.setattr(harness.metrics, "computed", broken)
        await harness.request(2).answered()
        await harness.request().answered()
    assert "no room for 2 rows" in caplog.text


async def test_engine_fault_is_of_its_culprit_only(caplog: pytest.LogCaptureFixture) -> None:
    """fault 6"""
    gate = HeldDevice()
    poison = 0.5

    def fail(batch: Batch) -> None:
        gate(batch)
        if poison in batch.rows:
            raise RuntimeError("secret of the device")

    async with serving(FakeEngine(gate=fail)) as harness:
        before = harness.request()
        await gate.entered()
        shared = [harness.request(), Ask(harness, A, np.full((1, 3), poison)), harness.request()]
        await turns()
        gate.open()
        await before.answered()
        error = await shared[1].failed()
        assert isinstance(error, EngineError)
        assert "secret" not in f"{error!r} {error.__cause__!r}"
        await shared[0].answered()
        await shared[2].answered()
        await harness.request().answered()
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(records) == 1
    assert "secret of the device" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()])
async def test_faults_that_cannot_cross_a_future_are_engine_faults_too(fault: BaseException) -> None:
    faults = [fault]

    def fail(_: Batch) -> None:
        if faults:
            raise faults.pop()

    async with serving(FakeEngine(gate=fail)) as harness:
        assert isinstance(await harness.request().failed(), EngineError)
        await harness.request().answered()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer[:-1],
        lambda answer: np.concatenate([answer, answer[:1]]),
        lambda answer: answer[:, :1],
        lambda answer: answer.tolist(),
        lambda _: None,
    ],
    ids=["short", "long", "narrow", "list", "none"],
)
async def test_answer_of_a_wrong_shape_is_nobodys(
    spoil: Callable[[Matrix], object], caplog: pytest.LogCaptureFixture
) -> None:
    """fault 8"""
    engine = WrongEngine(spoil)
    async with serving(engine, max_queue_delay_ms=3_600_000, max_batch_rows=3) as harness:
        asks = [harness.request(), harness.request(2)]
        for ask in asks:
            assert isinstance(await ask.failed(), EngineError)
        assert "the engine answered" in caplog.text
        engine.spoil = None
        await harness.request(3).answered()


async def test_answer_does_not_alias_the_engines_memory() -> None:
    buffer = np.zeros((1, 2))

    def reuse(answer: Matrix) -> Matrix:
        buffer[:] = answer
        return buffer

    async with serving(WrongEngine(reuse)) as harness:
        first, second = harness.request(), None
        await asyncio.wait([first.task])
        second = harness.request()
        await second.answered()
        await first.answered()


@pytest.mark.parametrize("cancelled", range(3))
async def test_cancelled_on_the_device_leaves_its_batch_mates(cancelled: int) -> None:
    """fault 1"""
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate), max_queue_delay_ms=3_600_000, max_batch_rows=6) as harness:
        asks = [harness.request(num_rows) for num_rows in (1, 2, 3)]
        await gate.entered()
        asks[cancelled].task.cancel()
        gate.let_through()
        for index, ask in enumerate(asks):
            if index != cancelled:
                assert (await ask.answered()).batch_rows == 6
        assert asks[cancelled].task.cancelled()


async def test_cancelled_in_the_queue_is_not_computed() -> None:
    """fault 1"""
    gate = HeldDevice()
    async with serving(FakeEngine(gate=gate)) as harness:
        keeper = harness.request()
        await gate.entered()
        asks = [harness.request() for _ in range(3)]
        await turns()
        asks[1].task.cancel()
        await turns()
        assert harness.value("queued_requests") == 2
        gate.open()
        assert [(await ask.answered()).batch_rows for ask in (keeper, asks[0], asks[2])] == [1, 2, 2]


async def test_withdrawn_before_the_cut_is_not_computed() -> None:
    """fault 1: the batcher was woken, and has its turn after the caller left."""
    computed: list[int] = []
    async with serving(FakeEngine(gate=lambda batch: computed.append(len(batch.rows)))) as harness:
        left = harness.admit(2)
        harness.batcher.withdraw(left)
        await harness.request().answered()
    assert computed == [1]


async def test_withdrawn_twice_or_after_its_outcome_changes_nothing() -> None:
    outcomes: list[object] = []
    async with serving(FakeEngine()) as harness:
        answered, left = harness.admit(on_outcome=outcomes.append), harness.admit(on_outcome=outcomes.append)
        for _ in range(2):
            harness.batcher.withdraw(left)
        await harness.request().answered()
        harness.batcher.withdraw(answered)
        assert harness.batcher.num_ongoing_requests == 0
    assert [type(outcome) for outcome in outcomes] == [Prediction]


async def test_an_outcome_that_cannot_be_passed_on_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the caller's own fault")

    async with serving(FakeEngine()) as harness:
        harness.admit(on_outcome=fail)
        await harness.request().answered()
    assert "its outcome could not be passed on" in caplog.text
