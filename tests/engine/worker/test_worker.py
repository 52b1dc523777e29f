"""The engine in a worker process: it answers like the engine itself, and its errors and its end are reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import fake_worker
import numpy as np
import psutil
import pytest
import torch
from fake_worker import EXITS, KILLED, LOST, NO_MEMORY, NOT_RECORDED, REFUSED_ROWS, UNEXPECTED, WORKER, numbers

from serve.core import Batch, ModelDefinition, QueryTable
from serve.core.errors import DeviceLost, EngineError, InvalidInput, InvalidModel, OutOfMemory, StartupError
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.fake import FakeEngine
from serve.engine.worker.client import ContextHandle, WorkerEngine
from serve.settings import EngineSettings

RECORD = {"a": 1.25, "b": None}


@pytest.fixture
def worker() -> Iterator[WorkerEngine]:
    engine = WorkerEngine(EngineSettings(), 8, WORKER)
    yield engine
    engine.close()


@pytest.fixture
def context(worker: WorkerEngine) -> ContextHandle:
    return worker.fit(numbers())


def batch_with(context: ContextHandle, fault: float) -> Batch:
    return Batch(context, np.full((3, 2), fault))


def test_it_answers_as_the_engine_itself(worker: WorkerEngine, context: ContextHandle) -> None:
    engine = FakeEngine()
    fitted = engine.fit(numbers())
    assert (context.classes, context.columns, context.num_outputs) == (fitted.classes, fitted.columns, 2)
    np.testing.assert_array_equal(context.encode_context(), fitted.encode_context())
    rows = context.encode(QueryTable.from_records([RECORD]))
    np.testing.assert_array_equal(rows, fitted.encode(QueryTable.from_records([RECORD])))
    np.testing.assert_array_equal(context.encode(QueryTable.from_rows(["b", "a"], [[None, 1.25]])), rows)
    np.testing.assert_array_equal(worker.predict(Batch(context, rows)), engine.predict(Batch(fitted, rows)))
    np.testing.assert_array_equal(worker.reference(Batch(context, rows)), engine.reference(Batch(fitted, rows)))


def test_each_context_has_its_number(worker: WorkerEngine, context: ContextHandle) -> None:
    rows = np.array([[1.0, 2.0]])
    before = worker.predict(Batch(context, rows))
    second = worker.fit(numbers())
    assert second is not context
    np.testing.assert_array_equal(worker.predict(Batch(second, rows)), before)
    np.testing.assert_array_equal(worker.predict(Batch(context, rows)), before)


def test_a_context_tells_when_its_backend_changed(worker: WorkerEngine, context: ContextHandle) -> None:
    other = worker.fit(numbers())
    worker.predict(batch_with(context, 1.0))
    assert context.backend == "compiled"
    worker.predict(batch_with(context, NOT_RECORDED))
    worker.predict(batch_with(other, 1.0))
    assert (context.backend, other.backend) == ("compiled, not recorded", "compiled")


def test_a_lost_device_is_named_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    engine = WorkerEngine(EngineSettings(), 8, WORKER)
    with pytest.raises(DeviceLost):
        engine.predict(batch_with(engine.fit(numbers()), LOST))
    engine.close()
    assert "DeviceLost: cuda:0 is lost" in capfd.readouterr().err


def test_errors_are_raised_as_themselves(worker: WorkerEngine, context: ContextHandle) -> None:
    with pytest.raises(OutOfMemory, match="no memory for 3 rows"):
        worker.predict(batch_with(context, NO_MEMORY))
    with pytest.raises(EngineError, match="LookupError: something of a package's"):
        worker.predict(batch_with(context, UNEXPECTED))
    with pytest.raises(InvalidInput, match="'c'"):
        context.encode(QueryTable.from_records([{"c": 1}]))
    worker.predict(batch_with(context, 1.0))  # the worker survives each of them


@pytest.mark.parametrize(("fault", "how"), [(EXITS, "exit code 7"), (KILLED, "signal 9"), (LOST, "exit code 70")])
def test_a_worker_that_ends_is_a_lost_device(
    worker: WorkerEngine, context: ContextHandle, fault: float, how: str
) -> None:
    assert not worker.lost
    with pytest.raises(DeviceLost, match=rf"\({how}\)"):
        worker.predict(batch_with(context, fault))
    assert worker.lost
    with pytest.raises(DeviceLost, match=how):
        worker.predict(batch_with(context, 1.0))


def test_it_yields_the_processor_to_the_replica(worker: WorkerEngine) -> None:
    assert psutil.Process(worker.pid).nice() == min(19, psutil.Process().nice() + 5)


def test_signals_that_stop_a_server_do_not_stop_the_engine(worker: WorkerEngine, context: ContextHandle) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, signum)
        worker.predict(batch_with(context, 1.0))


def test_closing_ends_the_worker() -> None:
    engine = WorkerEngine(EngineSettings(), 8, WORKER)
    process = psutil.Process(engine.pid)
    engine.close()
    assert not process.is_running()


def test_one_thread_alone_ends_the_worker(capfd: pytest.CaptureFixture[str]) -> None:
    engine = WorkerEngine(EngineSettings(), 8, (*WORKER, "slow-end"))
    engine.close()
    assert "exit handlers ran" not in capfd.readouterr().err


def test_a_start_that_fails_leaves_no_process() -> None:
    before = psutil.Process().children()
    with pytest.raises(StartupError, match="not with thirteen"):
        WorkerEngine(EngineSettings(), REFUSED_ROWS, WORKER)
    assert psutil.Process().children() == before


def test_a_worker_whose_replica_was_killed_ends_in_the_middle_of_a_call() -> None:
    command = [sys.executable, fake_worker.__file__, "parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([process], timeout=30)
    assert not alive


@pytest.fixture(scope="module")
def real_worker() -> Iterator[WorkerEngine]:
    engine = WorkerEngine(EngineSettings(), 256)
    yield engine
    engine.close()


def test_the_real_engine_answers_from_there(
    real_worker: WorkerEngine, demo_definition: ModelDefinition, demo: TabPFNContext, engine: TabPFNEngine
) -> None:
    context = real_worker.fit(demo_definition)
    assert (context.backend, context.classes) == ("compiled", demo.classes)
    assert demo_definition.example is not None
    rows = np.concatenate(
        [context.encode(QueryTable.from_records([demo_definition.example])), context.encode_context()[:20]]
    )
    remote, local = real_worker.predict(Batch(context, rows)), engine.predict(Batch(demo, rows))
    np.testing.assert_allclose(remote, local, rtol=0, atol=1e-6)


def test_a_model_that_cannot_be_fitted_is_named(real_worker: WorkerEngine) -> None:
    with pytest.raises(InvalidModel, match="model 'm' version '1'"):
        real_worker.fit(numbers())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_failed_start() -> None:
    with pytest.raises(StartupError, match="cuda:0"):
        WorkerEngine(EngineSettings(device="cuda:0"), 8)
