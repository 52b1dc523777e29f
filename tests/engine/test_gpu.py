"""The engine on a real GPU: its graphs, two batches in flight, a request. None of this has run on a GPU yet.

`scripts/gpu-run` runs it. On the pretend device other tests ask the same (test_cuda_path.py, test_launch_on_gpu.py).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from models import definition, records, write_tiny

from serve.core import Batch, Matrix, ModelReference, PredictRequest, Priority, QueryTable, Task
from serve.core.row_buckets import row_buckets
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import warm_up
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.execution.recorded import RecordedCompute
from serve.engine.worker.client import WorkerEngine
from serve.replica.factory import assemble
from serve.settings import EngineSettings, ServerSettings

pytestmark = pytest.mark.gpu

MAX_ROWS = 32
MODELS = [
    ("tabpfn_v2", Task.CLASSIFICATION),
    ("tabpfn_v2", Task.REGRESSION),
    ("tabpfn_v3_5", Task.CLASSIFICATION),
    ("tabpfn_v3_5", Task.REGRESSION),
]
TOLERANCE = 1e-4
"""In float32, as a share of the largest answer."""


def settings(device: str) -> EngineSettings:
    return EngineSettings(device=device, inference_precision="float32", parity_tolerance=TOLERANCE)


class OnGpu:
    """A model on a GPU, every bucket of which has run, and the CPU's answers to some rows."""

    def __init__(self, architecture: str, task: Task, folder: Path) -> None:
        model = definition(write_tiny(architecture, folder / f"{architecture}-{task}.safetensors", task), task, 60)
        cpu, self.engine = (TabPFNEngine(settings(name), MAX_ROWS) for name in ("cpu", "cuda:0"))
        self.context = self.engine.fit(model)
        self.rows = self.context.encode(QueryTable.from_records(records(2 * MAX_ROWS, seed=5)))
        on_cpu = cpu.fit(model)
        self.on_cpu = np.concatenate([cpu.predict(Batch(on_cpu, part)) for part in np.split(self.rows, 2)])
        self.canaries = canary_rows(self.context.encode_context())
        self.buckets = row_buckets(MAX_ROWS, self.engine.device)
        warm_up(self.engine, self.context, self.canaries, self.buckets, TOLERANCE)

    def batch(self, start: int, stop: int) -> Batch:
        return Batch(self.context, self.rows[start:stop])

    def check(self, answer: Matrix, start: int, stop: int) -> None:
        scale = np.abs(self.on_cpu).max()
        np.testing.assert_allclose(answer, self.on_cpu[start:stop], rtol=0, atol=TOLERANCE * scale)


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: "-".join(map(str, model)))
def gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnGpu]:
    made = OnGpu(*request.param, tmp_path_factory.mktemp("checkpoint"))
    yield made
    made.engine.close()


def recorded(context: TabPFNContext) -> RecordedCompute:
    assert context._compiled is not None
    compute = context._compiled._compute
    assert isinstance(compute, RecordedCompute)
    return compute


def test_every_bucket_is_a_graph_that_answers_as_the_plain_call(gpu: OnGpu) -> None:
    compute = recorded(gpu.context)
    assert compute.num_unrecorded == 0
    assert gpu.context.backend == "compiled"
    assert len(compute._recordings) >= len(gpu.buckets)
    for num_rows in gpu.buckets:
        gpu.engine.predict(gpu.batch(0, num_rows))
    for recording in compute._recordings.values():
        assert recording is not None
        with torch.inference_mode():
            recording.graph.replay()
            again = recording.output.clone()
            plain = compute._compute(recording.inputs)
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)


def test_other_rows_get_the_answers_of_the_cpu(gpu: OnGpu) -> None:
    for start, stop in ((0, 1), (7, 8), (0, 5), (3, 3 + MAX_ROWS), (0, MAX_ROWS)):
        gpu.check(gpu.engine.predict(gpu.batch(start, stop)), start, stop)


def test_tabpfn_answers_the_same_without_a_cache(gpu: OnGpu) -> None:
    assert check_parity(gpu.engine, gpu.context, gpu.canaries, TOLERANCE) <= TOLERANCE


@pytest.mark.parametrize("sizes", [(8, 8), (1, 1), (MAX_ROWS, 1), (1, MAX_ROWS)])
def test_two_batches_in_flight_have_their_own_answers(gpu: OnGpu, sizes: tuple[int, int]) -> None:
    assert gpu.engine.max_in_flight == 2
    places = [(MAX_ROWS * i, MAX_ROWS * i + num_rows) for i, num_rows in enumerate(sizes)]
    for _ in range(20):
        launched = [gpu.engine.launch(gpu.batch(*place)) for place in places]
        for one, place in zip(launched, places, strict=True):
            gpu.check(one.collect(), *place)


def test_always_one_batch_ahead(gpu: OnGpu) -> None:
    starts = range(2 * MAX_ROWS - 3)
    launched = (gpu.engine.launch(gpu.batch(start, start + 3)) for start in starts)
    for start, (one, _) in enumerate(itertools.pairwise(launched)):
        gpu.check(one.collect(), start, start + 3)
    assert start == len(starts) - 2


def test_a_launch_waits_for_nothing(gpu: OnGpu) -> None:
    """torch raises an error where the host waits, in this mode. The events that `collect` waits for are not meant."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [gpu.engine.launch(gpu.batch(0, num_rows)) for num_rows in (1, MAX_ROWS)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, num_rows in zip(launched, (1, MAX_ROWS), strict=True):
        gpu.check(one.collect(), 0, num_rows)


def test_the_worker_process_answers_as_the_engine_itself(gpu: OnGpu) -> None:
    worker = WorkerEngine(settings("cuda:0"), MAX_ROWS)
    try:
        context = worker.fit(gpu.context.definition)
        gpu.check(worker.predict(Batch(context, gpu.rows[:5])), 0, 5)
        launched = [worker.launch(Batch(context, gpu.rows[start : start + 5])) for start in (0, 5)]
        for one, start in zip(launched, (0, 5), strict=True):
            gpu.check(one.collect(), start, start + 5)
    finally:
        worker.close()


async def test_a_replica_answers_requests() -> None:
    """The demo model in a replica of its own, with the engine in its worker process, for callers at the same time."""
    predictor = assemble(ServerSettings(engine=settings("cuda:0")))
    await predictor.start()
    try:
        model = predictor.model(ModelReference("fraud"))
        example = model.definition.example
        assert example is not None

        async def ask(number: int) -> Matrix:
            now = time.monotonic()
            table = QueryTable.from_records([example])
            request = PredictRequest(ModelReference("fraud"), table, now, now + 60, Priority.INTERACTIVE, f"r-{number}")
            return (await predictor.predict(request)).outputs

        answers = await asyncio.gather(*map(ask, range(16)))
        assert all(np.abs(answer - answers[0]).max() <= TOLERANCE for answer in answers)
        np.testing.assert_allclose(answers[0].sum(axis=1), 1, rtol=0, atol=1e-6)
    finally:
        await predictor.close()
