"""The command: a small grid, its JSON and its plot, and the tuning of the peers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.offline.batcher import BatcherOptions, main, run_batcher
from benchmarks.offline.simulation.cell import Finished, Load
from benchmarks.offline.simulation.contenders import AS_THEY_COME, Contender, candidates
from benchmarks.offline.simulation.device import DEVICES
from benchmarks.offline.simulation.experiments import EXPERIMENTS, OURS_ALONE, plan
from benchmarks.offline.simulation.plot import STYLES
from benchmarks.offline.simulation.plot import main as draw
from benchmarks.offline.simulation.tuning import LOADS_TRIED, MIXES_TRIED, tune

SMALL = BatcherOptions(experiments=("soak",), requests=40)


def test_a_run_says_everything_that_its_numbers_need() -> None:
    run = run_batcher(SMALL)
    assert run["kind"] == "offline-batcher"
    assert {"machine", "versions", "commit", "config", "speed", "results"} <= set(run)
    assert set(run["config"]["devices"]) == set(DEVICES)
    assert set(run["speed"]) == set(SMALL.experiments)
    assert all(facts["simulated_s_per_wall_s"] > 0 for facts in run["speed"].values())
    assert all(result["lost"] == 0 for result in run["results"])
    assert run["results"] == run_batcher(SMALL)["results"]


def test_json_and_plot_are_written_and_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_json, to_plot, again = tmp_path / "run.json", tmp_path / "run.png", tmp_path / "again.png"
    arguments = ["--experiments", "soak", "replicas and contexts", "--requests", "40", "--seed", "3"]
    assert main([*arguments, "--json", str(to_json), "--plot", str(to_plot)]) == 0
    assert "simulated hours" in capsys.readouterr().out
    run = json.loads(to_json.read_text())
    assert run["config"]["seed"] == 3
    assert len(run["results"]) == 7
    draw([str(to_json), str(again)])
    assert to_plot.stat().st_size > 10_000
    assert again.read_bytes() == to_plot.read_bytes()


def test_the_grid_covers_what_it_should() -> None:
    tuned = {device: list(AS_THEY_COME[:1]) for device in DEVICES}
    runs = list(plan(tuple(EXPERIMENTS), 100, 1, tuned))
    loads = [load for name, load, _ in runs if name == "load"]
    assert {load.load for load in loads} >= {0.1, 1.0, 1.5}
    assert {load.arrivals for load in loads} == {"poisson", "bursty"}
    assert {load.mix for load in loads} == {"1 row", "1-100 rows", "mixed"}
    assert {load.num_contexts for _, load, _ in runs} >= {1, 500}
    assert {load.num_replicas for _, load, _ in runs} >= {1, 16}
    for name, _, contenders in runs:
        assert (len(contenders) == 1) == (name in OURS_ALONE)


def test_every_policy_has_its_line_in_the_plot() -> None:
    names = {contender.name for contender in AS_THEY_COME} | set(candidates(DEVICES["gpu"]))
    assert set(STYLES) == names


def test_tuning_takes_the_lowest_p99_of_the_best_and_gives_up_on_the_hopeless() -> None:
    tried: dict[str, int] = {}

    def answer(contender: Contender, _: Load) -> Finished:
        wait_s = contender.settings.get("batch_wait_timeout_s", 0.02)
        key = f"{contender.name} {contender.settings}"
        tried[key] = tried.get(key, 0) + 1
        share = 0.1 if wait_s > 0.04 else 0.995 if wait_s == 0.01 else 1.0 if wait_s == 0.02 else 0.9
        return Finished({"goodput_share": share, "latency": {"p99_ms": 5.0 if wait_s == 0.01 else 9.0}}, 1, 1, 1, 1)

    best = tune("gpu", 10, 1, answer)
    assert [contender.name for contender in best] == ["Ray, tuned", "Triton, tuned", "BentoML, tuned"]
    assert best[0].settings["batch_wait_timeout_s"] == 0.01
    assert set(tried.values()) == {1, len(MIXES_TRIED) * len(LOADS_TRIED)}
