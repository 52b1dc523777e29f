"""A replica's life: not before it is ready, nothing after it drains, everything admitted in between."""

import asyncio
import gc
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from predictor_harness import RECORD, OneModel, make, predict, request_of

from serve.core import Batch, Matrix, ModelDefinition, ModelReference, Priority, QueryTable, ServerState
from serve.core.errors import (
    DeadlineExceeded,
    DeadlineTooShort,
    Draining,
    EngineError,
    InvalidInput,
    InvalidModel,
    NotReady,
    StartupError,
    TooLarge,
    UnknownModel,
)
from serve.engine.fake import FakeEngine


async def test_it_answers_between_start_and_drain() -> None:
    predictor = make()
    assert not predictor.is_ready
    with pytest.raises(NotReady):
        predictor.model(ModelReference("fraud"))
    await predictor.start()
    assert predictor.is_ready
    by_record = await predict(predictor, [RECORD])
    by_table = await predictor.predict(request_of(predictor, QueryTable.from_rows(["amount"], [[3.0]])))
    assert by_record.outputs.tolist() == by_table.outputs.tolist()
    assert by_record.batch_rows == 1
    assert (
        b'tabpfn_model_info{backend="compiled",checkpoint="fake-1",device="cpu",model="fraud",version="1"} 1.0'
        in predictor.telemetry.prometheus.render()
    )
    await predictor.drain()
    assert not predictor.is_ready
    assert predictor.state is ServerState.DRAINING
    with pytest.raises(Draining):
        await predict(predictor, [RECORD])
    await predictor.close()
    await predictor.close()
    assert predictor.state is ServerState.CLOSED


async def test_a_lame_duck_is_not_ready_and_serves() -> None:
    predictor = make()
    await predictor.enter_lame_duck()
    assert predictor.state is ServerState.STARTING, "nothing was served yet"
    await predictor.start()
    await predictor.enter_lame_duck()
    assert predictor.state is ServerState.LAME_DUCK
    assert not predictor.is_ready
    assert not predictor.failed
    assert b"tabpfn_ready 0.0" in predictor.telemetry.prometheus.render()
    assert len((await predict(predictor, [RECORD])).outputs) == 1
    await predictor.drain()
    assert predictor.state is ServerState.DRAINING
    await predictor.enter_lame_duck()
    assert predictor.state is ServerState.DRAINING
    await predictor.close()


async def test_an_unknown_model_too_many_rows_and_bad_rows_are_refused() -> None:
    predictor = make(batching={"max_request_rows": 20})
    await predictor.start()
    with pytest.raises(UnknownModel, match="'other'"):
        predictor.model(ModelReference("other"))
    with pytest.raises(TooLarge, match=r"21 rows.*at most 20"):
        await predict(predictor, [RECORD] * 21)
    assert len((await predict(predictor, [RECORD] * 20)).outputs) == 20, "in batches of 8"
    with pytest.raises(InvalidInput, match="'amount': a string where a number belongs"):
        await predict(predictor, [{"amount": "x"}])
    with pytest.raises(InvalidInput, match="no row"):
        await predict(predictor, [])
    await predictor.close()


async def test_what_was_admitted_is_answered_when_it_drains() -> None:
    gate, entered = threading.Event(), threading.Event()
    gate.set()

    def wait(_: Batch) -> None:
        entered.set()
        assert gate.wait(20)

    predictor = make(FakeEngine(gate=wait))
    await predictor.start()
    gate.clear()
    entered.clear()
    asked = [asyncio.create_task(predict(predictor, [{"amount": float(i)}])) for i in range(20)]
    await asyncio.to_thread(entered.wait, 20)
    draining = asyncio.create_task(predictor.drain())
    await asyncio.sleep(0)  # one turn of the loop: the drain has begun
    with pytest.raises(Draining):
        await predict(predictor, [RECORD])
    assert not draining.done()
    gate.set()
    answers = await asyncio.gather(*asked)
    await draining
    assert len({tuple(answer.outputs[0]) for answer in answers}) == 20
    assert max(answer.batch_rows for answer in answers) > 1
    await predictor.close()


class WrongAlone(FakeEngine):
    def predict(self, batch: Batch) -> Matrix:
        return super().predict(batch) + (0.01 if len(batch.rows) == 1 else 0)


class FailsWarmUp(FakeEngine):
    def predict(self, _: Batch) -> Matrix:
        raise RuntimeError("no kernel image")


class CannotFit(FakeEngine):
    def fit(self, model: ModelDefinition) -> None:  # type: ignore[override]
        raise InvalidModel(f"model {model.name!r}: bad context")


FAILURES = [
    (WrongAlone(), "parity check failed"),
    (FailsWarmUp(), "warm-up failed at 8 rows on cpu: no kernel image"),
    (CannotFit(), "bad context"),
]


@pytest.mark.parametrize(("engine", "message"), FAILURES)
async def test_a_failed_check_is_a_failed_start(engine: FakeEngine, message: str) -> None:
    predictor = make(engine)
    with pytest.raises(StartupError, match=message):
        await predictor.start()
    assert not predictor.is_ready
    with pytest.raises(NotReady):
        predictor.models()
    await predictor.close()


@pytest.mark.parametrize("chosen", [{"parity_tolerance": 0.1}, {"inference_precision": "bfloat16"}])
async def test_a_looser_tolerance_is_the_operators_choice(chosen: dict[str, Any]) -> None:
    """By itself, or with a number format that needs one."""
    predictor = make(WrongAlone(), **chosen)
    await predictor.start()
    assert predictor.is_ready
    await predictor.close()


async def test_a_dead_batching_task_is_not_ready(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = make()
    await predictor.start()

    def fail(_: float) -> None:
        raise AssertionError("our own bug")

    monkeypatch.setattr(predictor._batcher._queue, "cut", fail)
    with pytest.raises(EngineError):
        await predict(predictor, [RECORD])
    assert predictor.failed
    assert not predictor.is_ready
    assert "batching task died" in caplog.text
    await predictor.close()


class Slow(FakeEngine):
    """Every batch takes `batch_s` on a clock of its own, from which warm-up is made to read."""

    def __init__(self, batch_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.batch_s = batch_s
        self.now = 0.0
        monkeypatch.setattr("serve.engine.checks.warmup.time", SimpleNamespace(perf_counter=lambda: self.now))

    def predict(self, batch: Batch) -> Matrix:
        self.now += self.batch_s
        return super().predict(batch)


@pytest.mark.parametrize(
    ("in_manifest_ms", "full_batch_s", "timeout_s"),
    [
        (None, 0.01, 5.0),
        (None, 60.0, 240.0),  # a model that slow would be answered by nobody within 5 s
        (250.0, 0.01, 0.25),
        (250.0, 60.0, 0.25),
    ],
)
async def test_the_default_timeout_is_the_manifests_or_the_settings_and_suits_a_slow_model(
    monkeypatch: pytest.MonkeyPatch, in_manifest_ms: float | None, full_batch_s: float, timeout_s: float
) -> None:
    engine = Slow(full_batch_s, monkeypatch)
    predictor = make(engine, OneModel(in_manifest_ms), {"default_timeout_ms": 5_000})
    await predictor.start()
    assert predictor.model(ModelReference("fraud")).timeout_s == timeout_s
    await predictor.close()


async def test_what_the_warm_up_measured_decides_at_once_whom_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make(Slow(60.0, monkeypatch))
    await predictor.start()
    with pytest.raises(DeadlineTooShort, match="1 rows take about 60000 ms here, the deadline is in 1000 ms"):
        await predict(predictor, [RECORD], timeout_s=1.0)
    await predict(predictor, [RECORD])
    await predictor.close()


async def test_priority_and_deadline_reach_the_batcher() -> None:
    predictor = make()
    await predictor.start()
    with pytest.raises(DeadlineExceeded):
        await predictor.predict(request_of(predictor, QueryTable.from_rows(["amount"], [[3.0]]), timeout_s=0.0))
    answer = await predict(predictor, [RECORD] * 3, priority=Priority.BULK)
    assert len(answer.outputs) == 3
    await predictor.close()


async def test_the_collector_leaves_alone_what_the_start_made() -> None:
    """Walking through every object of torch and tabpfn stalled all callers for 0.2 s."""
    gc.unfreeze()
    predictor = make()
    await predictor.start()
    assert gc.get_freeze_count() > 0
    tracked = {id(found) for found in gc.get_objects()}
    assert id(predictor.model(ModelReference("fraud")).fitted) not in tracked
    await predictor.drain()
    await predictor.close()
    gc.unfreeze()


async def test_a_lost_engine_is_a_failed_replica_though_nobody_asks() -> None:
    engine = FakeEngine()
    predictor = make(engine)
    await predictor.start()
    assert predictor.is_ready
    engine.lost = True
    assert predictor.failed
    assert not predictor.is_ready
    await predictor.close()
