"""The engine on a GPU, without one (`pretend_cuda`): it waits for nothing, answers as on the CPU, and launches little.

Every architecture and task runs in float32, and in one 16-bit format of one generation of GPUs; the formats take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import definition, records, write_tiny
from pretend_cuda import Launch, Note, PretendDevice, pretend_cuda

from serve.core import Batch, Matrix, ModelDefinition, QueryTable, Task
from serve.core.errors import DeviceLost, EngineError, InvalidModel, OutOfMemory, StartupError
from serve.core.row_buckets import row_buckets
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import warm_up
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.execution.recorded import Compute, RecordedCompute
from serve.settings import EngineSettings

MAX_ROWS = 8
ARCHITECTURES = ("tabpfn_v2", "tabpfn_v2_5", "tabpfn_v2_6", "tabpfn_v3", "tabpfn_v3_5")


class Format(NamedTuple):
    """A number format on a generation of GPUs.

    Attributes:
        tolerance: `engine.parity_tolerance`.
        max_error: how far an answer may be from the CPU's in float32, as a share of the spread between rows.
    """

    precision: str
    capability: tuple[int, int]
    tolerance: float
    max_error: float


FLOAT32 = Format("float32", (9, 0), 1e-5, 2e-4)
FLOAT16 = Format("float16", (7, 5), 2e-2, 1e-2)
NARROW = (Format("bfloat16", (9, 0), 2e-2, 1e-1), Format("bfloat16", (8, 0), 2e-2, 1e-1), FLOAT16)
PAIRS = [(architecture, task) for architecture in ARCHITECTURES for task in Task]
CASES = [(*pair, form) for i, pair in enumerate(PAIRS) for form in (FLOAT32, NARROW[i % 3])]

BUDGETS = {
    ("tabpfn_v2", Task.CLASSIFICATION): (84, 90),
    ("tabpfn_v2", Task.REGRESSION): (135, 141),
    ("tabpfn_v2_5", Task.CLASSIFICATION): (84, 90),
    ("tabpfn_v2_5", Task.REGRESSION): (135, 141),
    ("tabpfn_v2_6", Task.CLASSIFICATION): (84, 90),
    ("tabpfn_v2_6", Task.REGRESSION): (135, 141),
    ("tabpfn_v3", Task.CLASSIFICATION): (123, 135),
    ("tabpfn_v3", Task.REGRESSION): (166, 178),
    ("tabpfn_v3_5", Task.CLASSIFICATION): (120, 129),
    ("tabpfn_v3_5", Task.REGRESSION): (156, 165),
}
"""Kernels of a call of one row, those of the graph included: in float32, and in 16 bit. A launch costs a GPU more than
the arithmetic of a row, so whoever adds one shall know it. The models have two layers and four members."""


@dataclass(frozen=True)
class Call:
    """What the device saw of a call, and its answer."""

    answer: Matrix
    notes: Sequence[Note]
    launches: Sequence[Launch]

    @property
    def steps(self) -> list[tuple[str, bool]]:
        """Copies and waits, in order, and whether the host waited for them."""
        return [(note.what, note.waits) for note in self.notes]


@dataclass(frozen=True)
class Served:
    """A model's calls on the device, after each shape had run once, and the CPU's answers to the same rows."""

    one_row: Call
    many_rows: Call
    on_cpu: Matrix
    attentions: set[str]


@cache
def model_of(folder: Path, architecture: str, task: Task) -> ModelDefinition:
    path = folder / f"{architecture}-{task}.safetensors"
    return definition(write_tiny(architecture, path, task), task, 60)


@cache
def answer_on_cpu(model_key: tuple[Path, str, Task]) -> tuple[Matrix, Matrix]:
    """Rows, and the CPU's answers to them."""
    engine = TabPFNEngine(EngineSettings(), MAX_ROWS)
    fitted = engine.fit(model_of(*model_key))
    rows = fitted.encode(QueryTable.from_records(records(2 * MAX_ROWS, seed=5)))
    return rows, np.concatenate([engine.predict(Batch(fitted, part)) for part in np.split(rows, 2)])


def start(model: ModelDefinition, form: Format, device: str = "cuda:0") -> tuple[TabPFNEngine, TabPFNContext]:
    settings = EngineSettings.model_validate(
        {"device": device, "inference_precision": form.precision, "parity_tolerance": form.tolerance}
    )
    engine = TabPFNEngine(settings, MAX_ROWS)
    return engine, engine.fit(model)


def call(device: PretendDevice, engine: TabPFNEngine, context: TabPFNContext, rows: Matrix) -> Call:
    notes, launches = len(device.notes), len(device.launches)
    answer = engine.predict(Batch(context, rows))
    return Call(answer, device.notes[notes:], device.launches[launches:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def name_of(case: tuple[str, Task, Format]) -> str:
    architecture, task, form = case
    return f"{architecture}-{task}-{form.precision}-sm{form.capability[0]}{form.capability[1]}"


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def case(request: pytest.FixtureRequest) -> tuple[str, Task, Format]:
    return request.param


@pytest.fixture(scope="module")
def served(case: tuple[str, Task, Format], folder: Path) -> Served:
    architecture, task, form = case
    rows, on_cpu = answer_on_cpu((folder, architecture, task))
    with pretend_cuda(form.capability) as device:
        engine, context = start(model_of(folder, architecture, task), form)
        engine.predict(Batch(context, rows[:1]))
        engine.predict(Batch(context, rows[:MAX_ROWS]))
        device.attentions.clear()
        one_row = call(device, engine, context, rows[MAX_ROWS : MAX_ROWS + 1])
        many_rows = call(device, engine, context, rows[MAX_ROWS:])
    return Served(one_row, many_rows, on_cpu[MAX_ROWS:], set(device.attentions))


@pytest.mark.parametrize("which", ["one_row", "many_rows"])
def test_a_call_is_one_copy_in_one_graph_and_one_copy_out(served: Served, which: str) -> None:
    seen: Call = getattr(served, which)
    only_wait = ("event.synchronize", True)
    assert seen.steps == [("copy in", False), ("copy out", False), only_wait], [n for n in seen.notes if n.waits]
    assert [launch.name for launch in seen.launches].count("graph") == 1


def test_replays_of_other_rows_answer_as_the_cpu_does(served: Served, case: tuple[str, Task, Format]) -> None:
    spread = np.ptp(served.on_cpu, axis=0).max()
    for answer in (served.one_row.answer, served.many_rows.answer):
        assert np.abs(answer - served.on_cpu[: len(answer)]).max() <= case[2].max_error * spread


def test_a_row_takes_no_more_kernels_than_its_budget(served: Served, case: tuple[str, Task, Format]) -> None:
    architecture, task, form = case
    budget = BUDGETS[architecture, task][form is not FLOAT32]
    num = sum(launch.num_kernels for launch in served.one_row.launches)
    assert num <= budget, num


def test_a_start_passes_its_checks(folder: Path) -> None:
    model, form = model_of(folder, "tabpfn_v3_5", Task.CLASSIFICATION), FLOAT16
    with pretend_cuda(form.capability):
        engine, context = start(model, form)
        canaries = canary_rows(context.encode_context())
        assert set(warm_up(engine, context, canaries, row_buckets(MAX_ROWS, "cuda:0"), form.tolerance)) == {1, 4, 8}
        assert check_parity(engine, context, canaries, form.tolerance) <= form.tolerance


# --- what the tests above would find


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change what every recorded forward pass computes."""
    make = RecordedCompute.__init__

    def init(self: RecordedCompute, compute: Compute) -> None:
        make(self, lambda inputs: change(compute(inputs)))

    monkeypatch.setattr(RecordedCompute, "__init__", init)


@pytest.mark.parametrize(
    "change",
    [lambda x: x * float(x.isfinite().all()), lambda x: x[x.isfinite()].view(x.shape)],
    ids=["asks for a value", "by a mask"],
)
def test_a_forward_pass_that_waits_is_found_and_served_without_a_graph(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    spoil(monkeypatch, change)
    rows, on_cpu = answer_on_cpu((folder, "tabpfn_v3_5", Task.CLASSIFICATION))
    with pretend_cuda() as device:
        engine, context = start(model_of(folder, "tabpfn_v3_5", Task.CLASSIFICATION), FLOAT32)
        seen = call(device, engine, context, rows[:MAX_ROWS])
    assert context.backend == "compiled, not recorded"
    assert len(seen.steps) == 4
    assert "graph" not in [launch.name for launch in seen.launches]
    np.testing.assert_allclose(seen.answer, on_cpu[:MAX_ROWS], rtol=0, atol=FLOAT32.tolerance)


def test_a_constant_on_the_host_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda x: x * torch.ones(x.shape[-1]))
    with pretend_cuda(), pytest.raises(InvalidModel, match="expected all tensors on one device"):
        start(model_of(folder, "tabpfn_v3_5", Task.CLASSIFICATION), FLOAT32)


def test_a_value_that_a_graph_froze_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factor = 1.0
    spoil(monkeypatch, lambda x: x + factor * torch.arange(x.shape[-1], device=x.device))
    model, answers = model_of(folder, "tabpfn_v3_5", Task.CLASSIFICATION), []
    rows, _ = answer_on_cpu((folder, "tabpfn_v3_5", Task.CLASSIFICATION))
    for at_first in (1.0, 3.0):
        with pretend_cuda() as device:
            factor = at_first
            engine, context = start(model, Format("float32", (9, 0), 10.0, 0))
            factor = 3.0
            answers.append(call(device, engine, context, rows[:MAX_ROWS]).answer)
    assert np.abs(answers[0] - answers[1]).max() > FLOAT32.max_error


# --- faults of the device, and several devices


@pytest.fixture
def model(folder: Path) -> ModelDefinition:
    return model_of(folder, "tabpfn_v3_5", Task.CLASSIFICATION)


def test_another_gpu_is_entered_by_every_thread_that_uses_it(model: ModelDefinition, folder: Path) -> None:
    """A graph holds the work of its thread's current device. The engine is made in one thread, and used in another."""
    rows, on_cpu = answer_on_cpu((folder, "tabpfn_v3_5", Task.CLASSIFICATION))
    with pretend_cuda() as device:
        engine = TabPFNEngine(EngineSettings(device="cuda:1", inference_precision="float32"), MAX_ROWS)

        def use(fit: bool) -> Matrix | TabPFNContext:
            with device:
                return engine.fit(model) if fit else call(device, engine, context, rows[:MAX_ROWS]).answer

        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
            context = first.submit(use, True).result()
            answer = second.submit(use, False).result()
        assert context.backend == "compiled"
    np.testing.assert_allclose(answer, on_cpu[:MAX_ROWS], rtol=0, atol=FLOAT32.tolerance)


def test_a_gpu_beyond_the_last_is_a_failed_start() -> None:
    with pretend_cuda(num_gpus=2):
        TabPFNEngine(EngineSettings(device="cuda:1"))
        with pytest.raises(StartupError, match=r"engine.device is cuda:2, but the number of GPUs that torch sees is 2"):
            TabPFNEngine(EngineSettings(device="cuda:2"))


def test_cudnns_attention_is_not_taken(model: ModelDefinition) -> None:
    with pretend_cuda((9, 0)) as device:
        assert torch.backends.cuda.cudnn_sdp_enabled(), "it would be, by torch"
        start(model, NARROW[0])
        assert "flash" in device.attentions
        assert "cudnn" not in device.attentions


@pytest.mark.parametrize(
    ("fault", "kind", "is_lost"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceLost, True),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, False),
        (RuntimeError("something of one batch"), EngineError, False),
    ],
)
def test_faults_of_a_call_are_told_apart(
    model: ModelDefinition, folder: Path, fault: Exception, kind: type[EngineError], is_lost: bool
) -> None:
    rows, _ = answer_on_cpu((folder, "tabpfn_v3_5", Task.CLASSIFICATION))

    def fail(_: Launch) -> None:
        raise fault

    with pretend_cuda() as device:
        engine, context = start(model, FLOAT32)
        device.on_launch = fail
        with pytest.raises(EngineError, match=str(fault)) as caught:
            engine.predict(Batch(context, rows[:MAX_ROWS]))
        assert (type(caught.value), engine.lost) == (kind, is_lost)
        engine.close()


def test_buckets_whose_graphs_do_not_fit_into_the_memory_are_left_out(model: ModelDefinition) -> None:
    with pretend_cuda() as device:
        engine = TabPFNEngine(EngineSettings(device="cuda:0"), 2 * MAX_ROWS)
        context = engine.fit(model)
        canaries = canary_rows(context.encode_context())
        limit = max(launch.written for launch in device.launches if launch.is_captured)

        def run_out(launch: Launch) -> None:
            if launch.is_captured and launch.written > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")

        device.on_launch = run_out
        seconds = warm_up(engine, context, canaries, row_buckets(2 * MAX_ROWS, "cuda:0"), FLOAT32.tolerance)
    assert set(seconds) == {1, 4}, "16 rows are more than the 8 that have run before"
    assert context.backend == "compiled"
