"""Batches of an engine that says by a file descriptor when an answer is there: no thread, never beside other work."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from batcher_harness import TIMEOUT_S, Harness, serving, turns

from serve.core import Batch, Launched, Matrix
from serve.core.errors import DeviceLost, EngineError, InvalidInput
from serve.engine.fake import FakeEngine, fake_answer


class _Remote:
    def __init__(self, engine: RemoteEngine, batch: Batch) -> None:
        self.engine, self.batch = engine, batch

    def collect(self) -> Matrix:
        return self.engine.collect(self.batch)


class RemoteEngine(FakeEngine):
    """As an engine in another process: answers come over a pipe, when the test says so."""

    def __init__(self, max_in_flight: int = 1) -> None:
        super().__init__(max_in_flight=max_in_flight)
        self.fd, self._answers = os.pipe()
        self.answer_fd = self.fd
        self.launched: deque[Batch] = deque()
        self.threads: set[str] = set()
        self.is_alone = False
        self.error: Exception | None = None
        self.launch_error: Exception | None = None
        self.has_hung_up = False

    def launch(self, batch: Batch) -> Launched:
        assert not self.is_alone, "a batch was launched beside other work"
        self.threads.add(threading.current_thread().name)
        if self.launch_error is not None:
            raise self.launch_error
        self.launched.append(batch)
        return _Remote(self, batch)

    def answer(self, num_batches: int = 1) -> None:
        os.write(self._answers, b"." * num_batches)

    def hang_up(self) -> None:
        self.has_hung_up = True
        os.close(self._answers)

    def collect(self, batch: Batch) -> Matrix:
        self.threads.add(threading.current_thread().name)
        if not os.read(self.fd, 1):
            raise DeviceLost("the engine's process has hung up")
        assert batch is self.launched.popleft()
        if self.error is not None:
            raise self.error
        return fake_answer(batch)


@asynccontextmanager
async def remote(max_in_flight: int = 1) -> AsyncIterator[tuple[Harness, RemoteEngine]]:
    engine = RemoteEngine(max_in_flight)
    async with serving(engine, max_batch_rows=4) as harness:
        try:
            yield harness, engine
        finally:
            if not engine.has_hung_up:
                engine.answer(100)
    os.close(engine.fd)
    if not engine.has_hung_up:
        engine.hang_up()


@pytest.mark.parametrize("max_in_flight", [1, 2])
async def test_batches_run_on_the_event_loop(max_in_flight: int) -> None:
    async with remote(max_in_flight) as (harness, engine):
        asks = [harness.request(3) for _ in range(4)]
        for _ in range(4):
            while not engine.launched:
                await turns(1)
            engine.answer()
        for ask in asks:
            await ask.answered()
        assert engine.threads == {threading.main_thread().name}


async def test_other_work_waits_for_the_batches_and_holds_the_next() -> None:
    async with remote() as (harness, engine):
        first = harness.request()
        await turns()
        started, release = threading.Event(), threading.Event()

        def work() -> str:
            engine.is_alone = True
            started.set()
            assert release.wait(TIMEOUT_S)
            engine.is_alone = False
            return "done"

        working = asyncio.create_task(harness.batcher.run_on_device(work))
        await turns()
        assert not started.is_set(), "a batch is in flight"
        engine.answer()
        await first.answered()
        assert await asyncio.to_thread(started.wait, TIMEOUT_S)
        second = harness.request()
        await turns()
        assert not engine.launched
        release.set()
        assert await working == "done"
        engine.answer()
        await second.answered()


async def test_work_goes_on_without_its_caller_and_is_still_alone() -> None:
    async with remote() as (harness, engine):
        started, release = threading.Event(), threading.Event()

        def work() -> None:
            engine.is_alone = True
            started.set()
            assert release.wait(TIMEOUT_S)
            engine.is_alone = False

        working = asyncio.create_task(harness.batcher.run_on_device(work))
        assert await asyncio.to_thread(started.wait, TIMEOUT_S)
        working.cancel()
        ask = harness.request()
        await turns()
        assert not engine.launched
        release.set()
        engine.answer()
        await ask.answered()


async def test_the_errors_of_other_work_are_raised() -> None:
    def fail() -> None:
        raise InvalidInput("of the work")

    async with remote() as (harness, _):
        with pytest.raises(InvalidInput, match="of the work"):
            await harness.batcher.run_on_device(fail)


async def test_a_launch_that_fails_behind_a_batch_leaves_that_batch_alone() -> None:
    async with remote(max_in_flight=2) as (harness, engine):
        first = harness.request(4)
        while not engine.launched:
            await turns(1)
        engine.launch_error = RuntimeError("no more")
        second = harness.request(4)
        await turns()
        engine.answer()
        await first.answered()
        assert isinstance(await second.failed(), EngineError)


async def test_a_fault_of_one_batch_is_its_own() -> None:
    async with remote() as (harness, engine):
        engine.error = RuntimeError("a fault")
        engine.answer()
        assert isinstance(await harness.request().failed(), EngineError)
        engine.error = None
        engine.answer()
        await harness.request().answered()


async def test_an_engine_that_hangs_up_fails_its_batch_and_keeps_nothing_busy() -> None:
    async with remote() as (harness, engine):
        engine.answer()
        await harness.request().answered()
        ask = harness.request()
        await turns()
        engine.hang_up()
        assert isinstance(await ask.failed(), EngineError)
        assert harness.batcher.died


async def test_an_idle_engine_that_hangs_up_is_not_watched_any_more() -> None:
    async with remote() as (harness, engine):
        engine.answer()
        await harness.request().answered()
        engine.hang_up()
        await turns()
        assert not asyncio.get_running_loop().remove_reader(engine.fd)


async def test_answers_are_of_the_callers_own_rows() -> None:
    async with remote(max_in_flight=2) as (harness, engine):
        engine.answer(8)
        predictions = await asyncio.gather(*(harness.request(rows).answered() for rows in (1, 3, 2, 4)))
        assert [len(prediction.outputs) for prediction in predictions] == [1, 3, 2, 4]
        assert all(np.isfinite(prediction.outputs).all() for prediction in predictions)
