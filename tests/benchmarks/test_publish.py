"""Pages and plots say what the published JSON says, and only `make results` changes them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.publish.__main__ import main, publish
from benchmarks.publish.catalogue import NAMES, RESULTS, SECTIONS, kind_of, read_all
from benchmarks.publish.markdown import between, ms, paragraph, percent, table, times
from benchmarks.publish.pages import PAGE, render_page
from benchmarks.publish.readme import BEGIN, END, README, render_table, replace_table
from benchmarks.report import PLOTS, digest

RUNS = read_all()


def test_the_page_is_written_from_the_json() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(RUNS), "run: make results"


def test_the_table_of_the_readme_is_written_from_the_json() -> None:
    text = README.read_text(encoding="utf-8")
    assert replace_table(text, render_table(RUNS)) == text, "run: make results"


@pytest.mark.parametrize("name", NAMES)
def test_every_plot_was_drawn_from_the_published_json(name: str) -> None:
    plot = RESULTS / f"{name}.png"
    if RUNS[name]["kind"] not in PLOTS:
        assert not plot.exists()
        return
    assert digest(RUNS[name]).encode() in plot.read_bytes(), "run: make results"


def test_the_results_hold_the_published_runs_and_nothing_else() -> None:
    assert sorted(path.stem for path in RESULTS.glob("*.json")) == sorted(NAMES)
    assert {path.stem for path in RESULTS.glob("*.png")} <= set(NAMES)
    for section in SECTIONS:
        assert {RUNS[name]["kind"] for name in section.names} == {section.kind}


def figures(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all numbers in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from figures(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from figures(inner, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


SHOWN = {
    "engine-full-size": ("results", 0, "compiled_ms"),
    "offline-engine": ("results", 0, "uncached_ms"),
    "online-load": ("results", 3, "latency", "p99_ms"),
    "mlperf": ("results", 0, "p99_ms"),
    "peers": ("systems", "mosec-compiled-engine", "max_rate_p99_100ms"),
    "mixed": ("overload", "refusal_p99_ms"),
    "mixed-mosec-compiled-engine": ("mixed", "interactive_p99_ms_beside_bulk"),
    "mixed-litserve-compiled-engine": ("mixed", "bulk_share_of_room"),
    "overhead": ("systems", "tabpfn-serve", "saturation", "share"),
    "evaluate": ("results", 0, "roc_auc"),
    "simulation": ("results", 369, "interactive", "p99_ms"),
}
"""One figure of every published run that the page shows."""


@pytest.mark.parametrize("name", NAMES)
def test_another_figure_in_the_json_makes_another_page(name: str) -> None:
    changed = copy.deepcopy(RUNS[name])
    place: Any = changed
    *path, last = SHOWN[name]
    assert tuple(SHOWN[name]) in set(figures(changed))
    for key in path:
        place = place[key]
    place[last] = 0.7654321 + 2 * place[last]
    assert render_page({**RUNS, name: changed}) != render_page(RUNS)


def test_every_section_states_machine_date_commit_and_command() -> None:
    page = render_page(RUNS)
    for run in RUNS.values():
        assert f"on {run['started_at'][:10]} on {run['machine']['cpu']}, {run['machine']['usable_cores']} cores" in page
        assert f"commit `{run['commit'][:10]}`" in " ".join(page.split())
    assert page.count("    python -m ") == len(NAMES)
    gpu = copy.deepcopy(RUNS["peers"])
    gpu["machine"]["gpus"] = [{"name": "GPU X"}]  # type: ignore[index]
    with_gpu = render_page({**RUNS, "peers": gpu})
    assert "No run used a GPU" in page
    assert "No run used a GPU" not in with_gpu
    assert "1 x GPU X" in with_gpu


def test_a_load_run_past_its_knee_is_written_and_the_readme_shows_the_highest_rate_in_time() -> None:
    run: Any = copy.deepcopy(RUNS["online-load"])
    past = copy.deepcopy(run["results"][-1])
    past |= {"rate": 2000.0, "verified": None, "ok": 0}
    past["latency"] |= {"p50_ms": 900.0, "p99_ms": 5000.0}
    past["batch_rows"]["per_batch"] = past["server_ms"]["queue"] = past["server_ms"]["compute"] = None
    run["results"].append(past)
    run["config"]["until_knee"] = True
    run["knee"] = {"highest_good_rate": 480.0, "ended": "goodput fell from 486/s to 20/s"}
    page = " ".join(render_page({**RUNS, "online-load": run}).split())
    assert "in time: 480 (goodput fell from 486/s to 20/s)" in page
    assert f"--rate 20 40 80 160 240 480 --until-knee --duration {run['config']['duration']:g}" in page
    assert "latency at 480 one-row" in render_table({**RUNS, "online-load": run})


# --- publishing -------------------------------------------------------------------------------------------------------


def write_run(folder: Path, name: str, kind: str) -> str:
    folder.mkdir(exist_ok=True)
    text = json.dumps({"kind": kind, "results": []})
    (folder / f"{name}.json").write_text(text)
    return text


def test_only_the_named_runs_are_published(tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "results"
    text = write_run(out, "mlperf", "online-mlperf")
    write_run(out, "overhead", "online-overhead")
    publish(["mlperf"], out, results)
    assert [path.name for path in results.iterdir()] == ["mlperf.json"]
    assert (results / "mlperf.json").read_text() == text


def test_nothing_is_published_if_one_run_is_absent_or_of_another_kind(tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "results"
    write_run(out, "mlperf", "online-mlperf")
    with pytest.raises(ValueError, match=r"there is no .*overhead\.json: measure it first"):
        publish(["mlperf", "overhead"], out, results)
    write_run(out, "overhead", "online-load")
    with pytest.raises(ValueError, match="is a run of kind 'online-load'; overhead needs 'online-overhead'"):
        publish(["mlperf", "overhead"], out, results)
    assert not results.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mlperv"], "no run is published as mlperv; choose from engine-full-size, offline-engine"),
        (["mlperf", "--source", "nowhere"], "there is no nowhere/mlperf.json: measure it first"),
    ],
)
def test_a_wrong_name_ends_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (PAGE, README, *RESULTS.iterdir())}
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_every_published_name_has_a_kind() -> None:
    assert {kind_of(name) for name in NAMES} == {section.kind for section in SECTIONS}


def test_the_table_stands_between_its_markers_and_the_rest_stays() -> None:
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nRest.\n"
    assert replace_table(text, f"{BEGIN}\nnew\n{END}") == f"# Title\n\n{BEGIN}\nnew\n{END}\n\nRest.\n"
    for broken in ("# Title\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n"):
        with pytest.raises(ValueError, match="put them back"):
            replace_table(broken, "new")


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_numbers_are_written_for_a_reader() -> None:
    assert [ms(value) for value in (None, 6.221, 99.94, 99.96, 1145.8)] == ["-", "6.2", "99.9", "100", "1,146"]
    assert [times(value) for value in (None, 6.674, 214.1)] == ["-", "6.7x", "214x"]
    assert [percent(None), percent(0.879), percent(0.9917, 1)] == ["-", "88 %", "99.2 %"]
    assert [between([40.2, 47.41]), between([6.21, 6.24])] == ["40.2 to 47.4", "6.2"]


def test_tables_and_paragraphs() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    lines = paragraph("word " * 60).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 120
