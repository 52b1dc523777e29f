"""A compiled forward pass answers where one exists, is checked at every load, and yields to the setting."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from models import TINY, definition, records, write_tiny
from tabpfn.architectures import ARCHITECTURES

from serve.core import Batch, QueryTable, Task
from serve.core.errors import InvalidModel, StartupError
from serve.engine import compiled
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.execution.split_rows import DividedCompute, torch_threads
from serve.engine.memory import sizes as memory
from serve.settings import EngineSettings


def answers(engine: TabPFNEngine, context: TabPFNContext) -> np.ndarray:
    rows = context.encode(QueryTable.from_records(records(40, seed=5)))
    return engine.predict(Batch(context, rows))


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("architecture", ["tabpfn_v2", "tabpfn_v2_5", "tabpfn_v2_6", "tabpfn_v3"])
def test_every_architecture_is_answered_by_the_compiled_backend(
    engine: TabPFNEngine, tmp_path: Path, architecture: str, task: Task
) -> None:
    """With the released recipes, whose fingerprints tabpfn draws anew in a batch: so it is asked row by row."""
    model = definition(write_tiny(architecture, tmp_path / f"{architecture[7:]}.safetensors", task), task, 80)
    fitted = engine.fit(model)
    assert fitted.backend == "compiled"
    tabpfn_engine = TabPFNEngine(EngineSettings(backend="tabpfn"))
    by_tabpfn = tabpfn_engine.fit(model)
    assert by_tabpfn.backend == "tabpfn"
    rows = fitted.encode(QueryTable.from_records(records(8, seed=5)))
    expected = np.concatenate([tabpfn_engine.predict(Batch(by_tabpfn, row)) for row in np.split(rows, len(rows))])
    assert expected.std(axis=0).max() > 1e-3 * np.abs(expected).max(), "the rows must be told apart"
    scale = 1.0 if task is Task.CLASSIFICATION else np.abs(expected).max()
    got = engine.predict(Batch(fitted, rows))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale)
    alone = np.concatenate([engine.predict(Batch(fitted, row)) for row in np.split(rows, len(rows))])
    np.testing.assert_allclose(got, alone, rtol=0, atol=1e-6 * scale)


def test_every_architecture_of_this_tabpfn_has_a_forward_of_ours() -> None:
    """One that comes with a new release runs on tabpfn's until it has one."""
    configs = {"tabpfn_v3_5": TINY, "tabpfn_v3": TINY}
    networks = {
        type(module.get_architecture(module.parse_config(configs.get(name, {"nlayers": 1, "max_num_classes": 10}))[0]))
        for name, module in ARCHITECTURES.items()
    }
    assert {network.__name__ for network in networks} == set(compiled._BUILDERS)


@pytest.mark.parametrize("task", list(Task))
def test_both_implementations_answer_alike(engine: TabPFNEngine, checkpoint: Path, task: Task) -> None:
    model = definition(checkpoint, task)
    got = engine.fit(model)
    tabpfn_engine = TabPFNEngine(EngineSettings(backend="tabpfn"))
    by_tabpfn = tabpfn_engine.fit(model)
    assert (got.backend, by_tabpfn.backend) == ("compiled", "tabpfn")
    expected = answers(tabpfn_engine, by_tabpfn)
    scale = 1.0 if task is Task.CLASSIFICATION else np.abs(expected).max()
    np.testing.assert_allclose(answers(engine, got), expected, rtol=0, atol=1e-5 * scale)


def test_threads_that_divide_the_rows_answer_as_one(
    engine: TabPFNEngine, classifier: TabPFNContext, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed_by: list[str] = []
    compute_part = DividedCompute._compute_part

    def told(self: DividedCompute, part: Sequence[torch.Tensor]) -> torch.Tensor:
        computed_by.append(threading.current_thread().name)
        return compute_part(self, part)

    monkeypatch.setattr(DividedCompute, "_compute_part", told)
    with torch_threads(torch.get_num_threads()):
        two = TabPFNEngine(EngineSettings(num_threads=2))
        fitted = two.fit(definition(checkpoint))
        np.testing.assert_allclose(answers(two, fitted), answers(engine, classifier), rtol=0, atol=1e-6)
        # One thread may have been quick enough for both.
        assert sum(name.startswith("rows_") for name in computed_by) >= 2


def test_tabpfns_caches_are_dropped(classifier: TabPFNContext) -> None:
    assert classifier.backend == "compiled"
    assert classifier._estimator.executor_.kv_caches == []


def test_an_architecture_without_a_compiled_forward_pass_runs_on_tabpfns(
    checkpoint: Path, engine: TabPFNEngine, classifier: TabPFNContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_BUILDERS", {})
    fitted = engine.fit(definition(checkpoint))
    assert fitted.backend == "tabpfn"
    np.testing.assert_allclose(answers(engine, fitted), answers(engine, classifier), rtol=0, atol=1e-5)


def test_a_forward_that_answers_otherwise_fails_the_load(
    checkpoint: Path, engine: TabPFNEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.engine.forward import v3_5

    def build_wrong(*arguments):
        forward = v3_5.build(*arguments)
        return lambda *rows: forward(*rows) * 1.01

    monkeypatch.setattr(compiled, "_BUILDERS", {"TabPFNV3p5": build_wrong})
    with pytest.raises(
        StartupError, match=r"by the compiled forward pass and by tabpfn differ by .* engine.parity_tolerance 1e-05"
    ):
        engine.fit(definition(checkpoint))


def test_half_precision_is_near(checkpoint: Path, engine: TabPFNEngine, classifier: TabPFNContext) -> None:
    half = TabPFNEngine(EngineSettings(inference_precision="bfloat16", parity_tolerance=0.05))
    got, exact = answers(half, half.fit(definition(checkpoint))), answers(engine, classifier)
    np.testing.assert_allclose(got, exact, rtol=0, atol=0.05)
    assert np.abs(got - exact).max() > 1e-6, "bfloat16 was not used"


def test_half_precision_fails_a_float32_tolerance(checkpoint: Path) -> None:
    strict = TabPFNEngine(EngineSettings(inference_precision="bfloat16", parity_tolerance=1e-5))
    with pytest.raises(StartupError, match="parity check failed"):
        strict.fit(definition(checkpoint))


def test_a_second_start_reads_the_kv_cache(
    checkpoint: Path, tmp_path: Path, engine: TabPFNEngine, caplog: pytest.LogCaptureFixture
) -> None:
    kept = TabPFNEngine(EngineSettings(kv_cache_dir=tmp_path / "kv"))
    first = answers(kept, kept.fit(definition(checkpoint)))
    (file,) = (tmp_path / "kv").iterdir()
    assert file.name == "tiny-1-cpu.safetensors"
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(answers(kept, kept.fit(definition(checkpoint))), first)
    assert file.stat().st_mtime_ns == written, "a file of this very fit is not written again"
    with caplog.at_level(logging.WARNING):
        other = replace(definition(checkpoint), options=replace(definition(checkpoint).options, random_state=7))
        got = answers(kept, kept.fit(other))
    assert "is not used" in caplog.text
    np.testing.assert_allclose(got, answers(engine, engine.fit(other)), rtol=0, atol=1e-6)


def test_a_model_too_large_is_refused_by_size(
    checkpoint: Path, engine: TabPFNEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: (1_000, "a small one"))
    with pytest.raises(InvalidModel, match="KV caches"):
        engine.fit(definition(checkpoint))


def test_ten_thousand_predictions_leave_no_memory_behind(engine: TabPFNEngine, classifier: TabPFNContext) -> None:
    rows = classifier.encode(QueryTable.from_records(records(8, seed=5)))
    batches = [Batch(classifier, rows[:1]), Batch(classifier, rows[:5])]
    process = psutil.Process()

    def predict(times: int) -> int:
        for number in range(times):
            engine.predict(batches[number % 50 == 0])
        return int(process.memory_info().rss)

    settled = predict(1_000)
    assert predict(10_000) - settled < 8 * 1024**2, "more than 800 bytes a prediction"
