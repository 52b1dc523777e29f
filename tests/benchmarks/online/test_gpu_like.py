"""The simulated GPU: its timeline, the engine around it, and whole runs of the command with a few callers."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import definition, write_random_checkpoint
from test_online_plots import assert_readable

from benchmarks.online import gpu_like
from benchmarks.online.client import Exchange
from benchmarks.online.errors import Refused, WrongAnswers
from benchmarks.online.gpu_like import PEERS, check_answers, cpu_by_part, main, peer, server, summary
from benchmarks.online.gpu_like_device import (
    GPU,
    VARIABLE,
    NotedTimeline,
    Notes,
    SimulatedDevice,
    Timeline,
    count_batches,
    idle_share,
    read_notes,
)
from benchmarks.online.gpu_like_engine import GpuLikeEngine
from benchmarks.online.gpu_like_plot import draw_gpu_like
from benchmarks.online.target import Target
from benchmarks.peers.models import load, predict_all
from benchmarks.peers.systems import SYSTEMS
from serve.core import Batch, Task
from serve.core.errors import EngineError, InvalidModel
from serve.settings import EngineSettings, StoreSettings
from serve.store import FolderStore

LAUNCHES = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 256)), min_size=1, max_size=30)
"""Microseconds since the launch before, and rows."""


def run_batches(device: SimulatedDevice, launches: list[tuple[int, int]]) -> tuple[list[float], Notes]:
    timeline, now = Timeline(device), 0.0
    launched, notes = [], []
    for gap_us, rows in launches:
        now += gap_us / 1e6
        launched.append(now)
        notes.append((*timeline.launch(rows, now), rows, 1))
    return launched, np.array(notes, [("began_at", "f8"), ("ended_at", "f8"), ("rows", "i8"), ("pid", "i8")])


@given(launches=LAUNCHES, fixed_ms=st.floats(0, 5), per_row_us=st.floats(0.1, 50))
def test_batches_run_one_by_one_as_soon_as_they_can(
    launches: list[tuple[int, int]], fixed_ms: float, per_row_us: float
) -> None:
    device = SimulatedDevice(fixed_ms, per_row_us)
    launched, notes = run_batches(device, launches)
    free_at = 0.0
    for at, note in zip(launched, notes, strict=True):
        assert note["began_at"] == max(at, free_at)
        free_at = note["ended_at"]
        assert free_at - note["began_at"] == pytest.approx(1e-3 * fixed_ms + 1e-6 * per_row_us * note["rows"])


@given(launches=LAUNCHES, cut=st.floats(0.01, 0.99))
def test_busy_and_idle_time_make_up_any_part_of_the_run(launches: list[tuple[int, int]], cut: float) -> None:
    device = SimulatedDevice()
    _, notes = run_batches(device, launches)
    end = float(notes["ended_at"][-1])
    busy_s = sum(device.seconds(rows) for _, rows in launches)
    assert idle_share(notes, 0.0, end) == pytest.approx(1 - busy_s / end, abs=1e-9)
    parts = cut * idle_share(notes, 0.0, cut * end) + (1 - cut) * idle_share(notes, cut * end, end)
    assert parts == pytest.approx(idle_share(notes, 0.0, end), abs=1e-9)
    assert idle_share(notes, end, 2 * end) == 1
    assert count_batches(notes, 0.0, end) == len(launches)


def test_full_batches_are_what_the_device_can_do() -> None:
    device = SimulatedDevice(fixed_ms=2.0, per_row_us=10.0)
    assert device.seconds(256) == pytest.approx(4.56e-3)
    assert device.rows_per_s(256) == pytest.approx(56_140, abs=1)


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a device of this process notes its batches; each takes 20 ms and 10 us a row."""
    for name, value in SimulatedDevice(20.0, 10.0).to_variable(tmp_path / "notes").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "notes"


def test_no_device_is_simulated_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(KeyError, match=VARIABLE):
        NotedTimeline()


def test_the_engine_prepares_and_corrects_and_a_batch_behind_another_waits_for_the_device(noted: Path) -> None:
    engine = GpuLikeEngine(EngineSettings(device=GPU))
    context = engine.fit(FolderStore(StoreSettings()).load("fraud"))
    rows = context.encode_context()[:24]
    assert engine.max_in_flight == 2
    first, second = engine.launch(Batch(context, rows[:5])), engine.launch(Batch(context, rows[5:]))
    notes = read_notes(noted)
    assert notes["rows"].tolist() == [16, 32], "the second is launched before the first is collected"
    assert notes["began_at"][1] >= notes["ended_at"][0]
    answers = np.concatenate([first.collect(), second.collect()])
    np.testing.assert_allclose(answers, engine.reference(Batch(context, rows)), rtol=1e-12)
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    assert len({*answers[:, 1].tolist()}) == len(np.unique(rows, axis=0)), "another caller's answer would be seen"
    assert answers[:, 1].mean() < 0.1, "corrected to the true share of fraud"
    with pytest.raises(EngineError, match="failed on cpu"):  # rows that cannot be prepared
        engine.launch(Batch(context, rows[:, :2]))


@pytest.mark.usefixtures("noted")
def test_a_regressor_has_no_made_up_answers(tmp_path: Path) -> None:
    model = definition(write_random_checkpoint(tmp_path / "random-v3.5.safetensors"), Task.REGRESSION)
    with pytest.raises(InvalidModel, match="compiled classifiers alone"):
        GpuLikeEngine(EngineSettings(device=GPU)).fit(model)


def test_a_peer_gets_the_same_engine(noted: Path) -> None:
    predict = load("gpu-like", 1)
    example = FolderStore(StoreSettings()).load("fraud").example or {}
    other = {**example, "amount": 3.5}
    (one,), (two, three) = predict_all(predict, [[example], [other, example]])
    assert one == three != two
    assert read_notes(noted)["rows"].tolist()[-1] == 4, "three rows, padded as on a GPU"


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_started_as_among_the_peers_but_for_its_engine(name: str) -> None:
    compiled = SYSTEMS[f"{name}-compiled-engine"]
    changed = [(old, new) for old, new in zip(compiled.command, peer(name).command, strict=True) if old != new]
    assert changed == [("compiled", "gpu-like")]
    assert peer(name).name == name
    assert peer(name).environment == compiled.environment is not None


def exchange(due: float, took_s: float, body: str = '{"probabilities": [[0.25, 0.75]]}', status: int = 200) -> Exchange:
    return Exchange(due, b"", record=0, sent=due, finished=due + took_s, status=status, body=body.encode())


def test_the_summary_is_of_the_measured_time() -> None:
    device = SimulatedDevice(fixed_ms=240.0, per_row_us=1000.0)
    _, notes = run_batches(device, [(0, 10), (500_000, 10), (0, 10), (1_000_000, 10)])
    ended = [exchange(at, 0.2) for at in (0.3, 0.5, 0.75, 1.0)]
    found = summary(ended, 1.0, 5, device, notes)  # from 0.3 to 1.3: the second and third batch
    assert (found["rate"], found["rows_per_s"]) == (4, 20)
    assert found["p50_ms"] == pytest.approx(200)
    assert not found["p99_reliable"]
    assert found["device_idle_share"] == pytest.approx(0.5)
    assert found["mean_batch_rows"] == 10
    assert found["share_of_full_batches"] == pytest.approx(20 / (256 / 0.496), abs=1e-4)


def test_cpu_time_is_of_the_engine_s_process_and_of_all_others() -> None:
    assert cpu_by_part({7: 1.0, 8: 2.0, 9: 3.0}, 8, 1_000) == {"front": 4.0, "core": None, "engine": 2.0}


def test_a_wrong_answer_or_none_is_no_result() -> None:
    target = Target("h", 1, [b""], {0: [0.25, 0.75]}, 1e-5)
    check_answers(target, [exchange(0.0, 0.1)])
    with pytest.raises(WrongAnswers):
        check_answers(target, [exchange(0.0, 0.1), exchange(0.0, 0.1, '{"probabilities": [[0.75, 0.25]]}')])
    with pytest.raises(Refused, match="429"):
        check_answers(target, [exchange(0.0, 0.1, "{}", status=429)])


def test_the_core_s_cpu_time_is_apart_where_it_has_a_process_of_its_own() -> None:
    spent = {7: 1.0, 8: 2.0, 9: 3.0, 10: 5.0}
    assert cpu_by_part(spent, 8, 1_000, core=7) == {"front": 8.0, "core": 1.0, "engine": 2.0}


def test_each_number_of_fronts_is_a_system_of_its_own() -> None:
    assert server(1) is gpu_like._SERVER
    assert (server(3).name, server(3).command[-2:]) == ("tabpfn-serve-3-fronts", ("--fronts", "3"))


@pytest.fixture
def own_sigterm() -> Iterator[None]:
    """The command takes SIGTERM; the tests get it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_sigterm")
def test_a_run_in_which_no_system_starts_ends_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = dataclasses.replace(gpu_like._SERVER, command=("-c", "raise SystemExit('it is broken')"))
    monkeypatch.setattr(gpu_like, "_SERVER", broken)
    with pytest.raises(SystemExit) as stop:
        main(["--callers", "1", "--nice", "0"])
    assert stop.value.code == 2
    assert "tabpfn-serve: StartFailed: tabpfn-serve ended with 1: it is broken" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("own_sigterm")
def test_a_run_with_the_server_and_with_a_peer_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # mosec is not installed in the project's own environment
    monkeypatch.setattr("benchmarks.peers.environments.install", lambda _: None)
    monkeypatch.setattr("benchmarks.peers.systems.python_of", lambda _: Path(sys.executable))
    to_json, to_plot = tmp_path / "run.json", tmp_path / "run.png"
    short = "--fronts 1 2 --callers 1 6 --rows 2 --duration 0.6 --warmup 0.2 --nice 0 --fixed-ms 4 --peers mosec"
    assert main([*short.split(), "--json", str(to_json), "--plot", str(to_plot)]) == 1
    run = json.loads(to_json.read_text())
    assert run["kind"] == "online-gpu-like"
    assert run["device"] == {"fixed_ms": 4.0, "per_row_us": 10.0}
    assert list(run["failures"]) == ["mosec"]
    assert "No module named 'mosec'" in run["failures"]["mosec"]
    assert [(found["system"], found["fronts"], found["callers"]) for found in run["results"]] == [
        ("tabpfn-serve", 1, 1),
        ("tabpfn-serve-2-fronts", 2, 1),
        ("tabpfn-serve", 1, 6),
        ("tabpfn-serve-2-fronts", 2, 6),
    ]
    for found in run["results"]:
        assert 0 < found["rate"] <= found["callers"] / 4.02e-3, "no request is answered before its batch ends"
        assert 4.02 <= found["p50_ms"] <= found["p99_ms"]
        assert 0 <= found["device_idle_share"] < 1
        assert found["mean_batch_rows"] > 0
        assert set(found["cpu_ms_per_request"]) == {"front", "core", "engine"}
        assert found["cpu_ms_per_request"]["front"] > 0
        assert (found["cpu_ms_per_request"]["core"] is None) == (found["fronts"] == 1)
        assert found["callers_cpu_ms_per_request"] > 0
    assert to_plot.read_bytes().startswith(b"\x89PNG")
    assert_readable(draw_gpu_like(run))
