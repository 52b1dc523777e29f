"""The probe of a GPU, on the pretend device and on a CPU: what it writes down, and that one failure is not the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pretend_cuda import Launch, pretend_cuda

from benchmarks.offline import probe as probing
from benchmarks.offline.architectures import synthetic_model, write_checkpoint
from benchmarks.offline.probe import ATTENTIONS, SMALL_V2, Probe, main
from serve.core import ModelDefinition


@pytest.fixture(scope="module")
def small_v2(tmp_path_factory: pytest.TempPathFactory) -> ModelDefinition:
    folder = tmp_path_factory.mktemp("checkpoint")
    return synthetic_model("v2", write_checkpoint("v2", folder, 1, SMALL_V2), 60, 6, 2, seed=1)


def test_a_gpu_tells_where_the_time_goes(small_v2: ModelDefinition) -> None:
    facts = {}
    with pretend_cuda():
        for part in Probe(small_v2, "float32", "cuda:0", 4, repeats=1).run():
            facts.update(part)
    assert set(facts["bucket_ms"]) == {"1", "4"}
    assert facts["largest_difference"] < 1e-4
    assert facts["largest_difference_between_buckets"] < 1e-4
    assert {"predict_ms", "launch_ms", "replay_ms", "eager_ms", "kernels"} <= set(facts["rows_1"])
    assert all(f"attention_{name}" in facts for name in ATTENTIONS)
    assert facts["attention_math"]["replay_ms_1"] > 0


def test_a_failure_is_written_down_and_the_next_model_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_v2: ModelDefinition
) -> None:
    monkeypatch.setattr(probing, "models", lambda *_: iter([("first", lambda: small_v2), ("second", lambda: small_v2)]))

    def fail_once(launch: Launch) -> None:
        if launch.name == "graph":
            device.on_launch = lambda _: None
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pretend_cuda() as device:
        device.on_launch = fail_once
        run = probing.probe("cuda:0", 2, True, 600, tmp_path / "probe.json")
    first, *others = run["results"]
    assert "CUDA out of memory" in first["error"]
    assert all("error" not in facts and facts["bucket_ms"] for facts in others)
    assert json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))["results"] == run["results"]


def test_no_model_starts_behind_the_budget() -> None:
    run = probing.probe("cpu", 2, True, -1, None)
    assert {facts["skipped"] for facts in run["results"]} == {"out of time"}


def test_a_cpu_tells_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_v2: ModelDefinition) -> None:
    monkeypatch.setattr(probing, "models", lambda *_: iter([("v2", lambda: small_v2)]))
    assert main(["--device", "cpu", "--small", "--json", str(tmp_path / "probe.json")]) == 0
    run = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert [set(facts["rows_1"]) for facts in run["results"]] == [{"predict_ms"}] * 2
    assert run["gpu"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert "sees no GPU on this machine: pass --device cpu --small" in line
