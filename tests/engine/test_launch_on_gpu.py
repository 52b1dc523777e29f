"""Two batches on a GPU (`pretend_cuda`): the host waits for neither while it launches, and each has its own answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import definition, records
from pretend_cuda import Launch, PretendDevice, pretend_cuda

from serve.core import Batch, Launched, Matrix, QueryTable, Task
from serve.core.errors import DeviceLost, OutOfMemory
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.settings import EngineSettings

MAX_ROWS = 8


class OnGpu(NamedTuple):
    """A classifier with class priors on a pretend GPU, and rows whose answers the CPU gave."""

    device: PretendDevice
    engine: TabPFNEngine
    context: TabPFNContext
    rows: Matrix
    on_cpu: Matrix

    def launch(self, start: int, stop: int) -> Launched:
        return self.engine.launch(Batch(self.context, self.rows[start:stop]))

    def check(self, launched: Launched, start: int, stop: int) -> None:
        np.testing.assert_allclose(launched.collect(), self.on_cpu[start:stop], rtol=0, atol=1e-5)


def start(device: PretendDevice, checkpoint: Path, name: str = "cuda:0") -> OnGpu:
    """Every shape that the tests launch has run once."""
    model = definition(checkpoint, Task.CLASSIFICATION, 60, class_priors={"0": 0.9, "1": 0.05, "2": 0.05})
    settings = [EngineSettings(device=one, inference_precision="float32") for one in ("cpu", name)]
    cpu, engine = (TabPFNEngine(one, MAX_ROWS) for one in settings)
    on_cpu, context = cpu.fit(model), engine.fit(model)
    rows = context.encode(QueryTable.from_records(records(3 * MAX_ROWS, seed=5)))
    for num_rows in (MAX_ROWS, 5, 3, 1):
        engine.predict(Batch(context, rows[:num_rows]))
    answers = [cpu.predict(Batch(on_cpu, part)) for part in np.split(rows, 3)]
    return OnGpu(device, engine, context, rows, np.concatenate(answers))


@pytest.fixture(scope="module")
def device() -> Iterator[PretendDevice]:
    with pretend_cuda() as device:
        yield device


@pytest.fixture(scope="module")
def gpu(device: PretendDevice, checkpoint: Path) -> OnGpu:
    return start(device, checkpoint)


COPIES = [("copy in", False), ("copy out", False)]
WAIT = [("event.synchronize", True)]


def test_the_host_waits_only_where_it_collects(gpu: OnGpu) -> None:
    device = gpu.device
    num_notes, num_launches = len(device.notes), len(device.launches)

    def steps() -> list[tuple[str, bool]]:
        return [(note.what, note.waits) for note in device.notes[num_notes:]]

    first = gpu.launch(0, MAX_ROWS)
    assert steps() == COPIES
    second = gpu.launch(MAX_ROWS, 2 * MAX_ROWS)
    assert steps() == COPIES * 2
    assert [launch.name for launch in device.launches[num_launches:]].count("graph") == 2
    first.collect()
    assert steps() == COPIES * 2 + WAIT
    second.collect()
    assert steps() == COPIES * 2 + WAIT * 2


@pytest.mark.parametrize("sizes", [(8, 8), (1, 1), (8, 1), (1, 8), (5, 8), (8, 5)])
def test_each_batch_has_its_own_answer(gpu: OnGpu, sizes: tuple[int, int]) -> None:
    """Of one shape, for which one recording's buffers serve both, and of two."""
    places = [(MAX_ROWS * i, MAX_ROWS * i + num_rows) for i, num_rows in enumerate(sizes)]
    for _ in range(2):
        batches = [gpu.launch(*place) for place in places]
        for launched, place in zip(batches, places, strict=True):
            gpu.check(launched, *place)


def test_always_one_batch_ahead(gpu: OnGpu) -> None:
    ahead = gpu.launch(0, 3)
    for first in range(1, 2 * MAX_ROWS):
        before, ahead = ahead, gpu.launch(first, first + 3)
        gpu.check(before, first - 1, first + 2)
    ahead.collect()


def test_an_answer_outlives_the_batches_behind_it(gpu: OnGpu) -> None:
    answer = gpu.launch(0, MAX_ROWS).collect()
    for _ in range(3):
        gpu.launch(MAX_ROWS, 2 * MAX_ROWS).collect()
    np.testing.assert_allclose(answer, gpu.on_cpu[:MAX_ROWS], rtol=0, atol=1e-5)


def test_a_launch_that_fails_harms_no_other(gpu: OnGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gpu.launch(0, MAX_ROWS)

    def run_out(launch: Launch) -> None:
        if launch.name == "graph":
            raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(gpu.device, "on_launch", run_out)
        with pytest.raises(OutOfMemory, match="no memory for 8 rows on cuda:0"):
            gpu.launch(MAX_ROWS, 2 * MAX_ROWS)
    third = gpu.launch(2 * MAX_ROWS, 3 * MAX_ROWS)
    gpu.check(first, 0, MAX_ROWS)
    gpu.check(third, 2 * MAX_ROWS, 3 * MAX_ROWS)


def test_a_device_that_is_lost_fails_both_where_they_are_collected(
    device: PretendDevice, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(launch: Launch) -> None:
        if launch.name == "event.synchronize":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    gpu = start(device, checkpoint)
    launched = gpu.launch(0, MAX_ROWS), gpu.launch(MAX_ROWS, 2 * MAX_ROWS)
    monkeypatch.setattr(device, "on_launch", lose)
    assert not gpu.engine.lost
    for one in launched:
        with pytest.raises(DeviceLost, match="illegal memory access"):
            one.collect()
    assert gpu.engine.lost


def test_a_second_thread_collects_on_the_engines_gpu(device: PretendDevice, checkpoint: Path) -> None:
    """A thread has GPU 0 until it chooses another."""
    gpu = start(device, checkpoint, "cuda:1")
    launched = gpu.launch(0, MAX_ROWS)
    seen: list[tuple[Matrix, int]] = []
    thread = threading.Thread(target=lambda: seen.append((launched.collect(), torch.cuda.current_device())))
    thread.start()
    thread.join()
    [(answer, current)] = seen
    assert current == 1
    np.testing.assert_allclose(answer, gpu.on_cpu[:MAX_ROWS], rtol=0, atol=1e-5)


def test_a_gpu_has_two_in_flight_and_a_cpu_one(gpu: OnGpu, engine: TabPFNEngine) -> None:
    assert gpu.engine.max_in_flight == 2
    assert engine.max_in_flight == 1
