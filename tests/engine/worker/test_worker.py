"""The engine in a process of its own: the same answers, the same errors, and no way to be left with half of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import fake_child
import numpy as np
import psutil
import pytest
import torch
from fake_child import CHILD, EXITS, KILLED, NO_MEMORY, REFUSED_ROWS, UNEXPECTED, numbers

from serve.core import Batch, ModelDefinition, QueryTable
from serve.core.errors import DeviceLost, EngineError, InvalidInput, InvalidModel, OutOfMemory, StartupError
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.fake import FakeEngine
from serve.engine.worker.client import ContextHandle, EngineProcess
from serve.settings import EngineSettings

RECORD = {"a": 1.25, "b": None}


@pytest.fixture
def child() -> Iterator[EngineProcess]:
    engine = EngineProcess(EngineSettings(), 8, CHILD)
    yield engine
    engine.close()


@pytest.fixture
def context(child: EngineProcess) -> ContextHandle:
    return child.fit(numbers())


def befallen(context: ContextHandle, what: float) -> Batch:
    return Batch(context, np.full((3, 2), what))


def test_it_answers_as_the_engine_itself(child: EngineProcess, context: ContextHandle) -> None:
    engine = FakeEngine()
    fitted = engine.fit(numbers())
    assert (context.classes, context.columns, context.num_outputs) == (fitted.classes, fitted.columns, 2)
    np.testing.assert_array_equal(context.encode_context(), fitted.encode_context())
    rows = context.encode(QueryTable.from_records([RECORD]))
    np.testing.assert_array_equal(rows, fitted.encode(QueryTable.from_records([RECORD])))
    np.testing.assert_array_equal(context.encode(QueryTable.from_rows(["b", "a"], [[None, 1.25]])), rows)
    np.testing.assert_array_equal(child.predict(Batch(context, rows)), engine.predict(Batch(fitted, rows)))
    np.testing.assert_array_equal(child.reference(Batch(context, rows)), engine.reference(Batch(fitted, rows)))


def test_contexts_are_told_apart(child: EngineProcess, context: ContextHandle) -> None:
    rows = np.array([[1.0, 2.0]])
    before = child.predict(Batch(context, rows))
    second = child.fit(numbers())
    assert second is not context
    np.testing.assert_array_equal(child.predict(Batch(second, rows)), before)
    np.testing.assert_array_equal(child.predict(Batch(context, rows)), before)


def test_errors_come_as_themselves(child: EngineProcess, context: ContextHandle) -> None:
    with pytest.raises(OutOfMemory, match="no memory for 3 rows"):
        child.predict(befallen(context, NO_MEMORY))
    with pytest.raises(EngineError, match="LookupError: something of a library's"):
        child.predict(befallen(context, UNEXPECTED))
    with pytest.raises(InvalidInput, match="'c'"):
        context.encode(QueryTable.from_records([{"c": 1}]))
    child.predict(befallen(context, 1.0))  # none of them is the end


@pytest.mark.parametrize(("what", "how"), [(EXITS, "exit code 7"), (KILLED, "signal 9")])
def test_a_child_that_ends_is_a_lost_device(
    child: EngineProcess, context: ContextHandle, what: float, how: str
) -> None:
    assert not child.lost
    with pytest.raises(DeviceLost, match=how):
        child.predict(befallen(context, what))
    assert child.lost
    with pytest.raises(DeviceLost, match=how):
        child.predict(befallen(context, 1.0))


def test_it_steps_back_for_who_reads_requests(child: EngineProcess) -> None:
    assert psutil.Process(child.pid).nice() == min(19, psutil.Process().nice() + 5)


def test_signals_that_stop_a_server_do_not_stop_the_engine(child: EngineProcess, context: ContextHandle) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        os.kill(child.pid, signum)
        child.predict(befallen(context, 1.0))


def test_closing_ends_the_child() -> None:
    engine = EngineProcess(EngineSettings(), 8, CHILD)
    process = psutil.Process(engine.pid)
    engine.close()
    assert not process.is_running()


def test_a_start_that_fails_leaves_nobody() -> None:
    before = psutil.Process().children()
    with pytest.raises(StartupError, match="not with thirteen"):
        EngineProcess(EngineSettings(), REFUSED_ROWS, CHILD)
    assert psutil.Process().children() == before


def test_a_child_whose_parent_was_killed_ends_in_the_middle_of_a_call() -> None:
    command = [sys.executable, fake_child.__file__, "parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([process], timeout=30)
    assert not alive


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    engine = EngineProcess(EngineSettings(), 256)
    yield engine
    engine.close()


def test_the_real_engine_answers_from_there(
    process: EngineProcess, demo_definition: ModelDefinition, demo: TabPFNContext, engine: TabPFNEngine
) -> None:
    context = process.fit(demo_definition)
    assert (context.backend, context.classes) == ("compiled", demo.classes)
    assert demo_definition.example is not None
    rows = np.concatenate(
        [context.encode(QueryTable.from_records([demo_definition.example])), context.encode_context()[:20]]
    )
    ours, theirs = process.predict(Batch(context, rows)), engine.predict(Batch(demo, rows))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_a_model_that_cannot_be_fitted_is_named(process: EngineProcess) -> None:
    with pytest.raises(InvalidModel, match="model 'm' version '1'"):
        process.fit(numbers())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_failed_start() -> None:
    with pytest.raises(StartupError, match="cuda:0"):
        EngineProcess(EngineSettings(device="cuda:0"), 8)
