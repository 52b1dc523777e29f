"""The command: a small grid, its JSON and its plot, and the tuning of the peers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import main as draw
from benchmarks.simulation.__main__ import main
from benchmarks.simulation.cell import Finished, Load
from benchmarks.simulation.contenders import WITH_DEFAULTS, Contender, candidates
from benchmarks.simulation.device import DEVICES
from benchmarks.simulation.experiments import EXPERIMENTS, WITHOUT_PEERS, plan
from benchmarks.simulation.plot import STYLES
from benchmarks.simulation.run import SimulationOptions, run_simulation
from benchmarks.simulation.tuning import LOADS_TRIED, MIXES_TRIED, tune

SMALL = SimulationOptions(experiments=("soak",), requests=40)


def test_a_run_states_everything_that_its_numbers_depend_on() -> None:
    run = run_simulation(SMALL)
    assert run["kind"] == "simulation"
    assert {"machine", "versions", "commit", "config", "speed", "results"} <= set(run)
    assert set(run["config"]["devices"]) == set(DEVICES)
    assert set(run["speed"]) == set(SMALL.experiments)
    assert all(facts["simulated_s_per_wall_s"] > 0 for facts in run["speed"].values())
    assert all(result["lost"] == 0 for result in run["results"])
    assert run["results"] == run_simulation(SMALL)["results"]


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


def test_progress_says_how_much_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    run_simulation(SMALL)
    assert "3 of 3 runs: experiment 'soak'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--experiments", "lode"], "'lode'"),
        (["--requests", "0"], "give 1 or more"),
        (["--json", "."], ". is a folder: name a file in it"),
    ],
)
def test_a_wrong_argument_ends_before_anything_runs(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_help_shows_every_default_and_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "(default: 8000)" in said
    assert all(name in said for name in EXPERIMENTS)


def test_the_grid_covers_what_it_should() -> None:
    tuned = {device: list(WITH_DEFAULTS[:1]) for device in DEVICES}
    runs = list(plan(tuple(EXPERIMENTS), 100, 1, tuned))
    loads = [load for name, load, _ in runs if name == "load"]
    assert {load.load for load in loads} >= {0.1, 1.0, 1.5}
    assert {load.arrivals for load in loads} == {"poisson", "bursty"}
    assert {load.mix for load in loads} == {"1 row", "1-100 rows", "mixed"}
    assert {load.num_contexts for _, load, _ in runs} >= {1, 500}
    assert {load.num_replicas for _, load, _ in runs} >= {1, 16}
    for name, _, contenders in runs:
        assert (len(contenders) == 1) == (name in WITHOUT_PEERS)


def test_every_policy_has_its_line_in_the_plot() -> None:
    names = {contender.name for contender in WITH_DEFAULTS} | set(candidates(DEVICES["gpu"]))
    assert set(STYLES) == names


def test_tuning_takes_the_lowest_p99_of_the_best_and_drops_hopeless_settings() -> None:
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
