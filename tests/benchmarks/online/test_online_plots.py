"""The plots of the online commands: drawn from the JSON alone, and readable without it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.machine import ROOT, envelope
from benchmarks.online.mixed_plot import draw_mixed
from benchmarks.online.mlperf_plot import draw_mlperf
from benchmarks.online.overhead_plot import draw_overhead
from benchmarks.online.search_plot import draw_search
from benchmarks.report import PLOTS, plot

PUBLISHED = (
    "mixed",
    "mixed-mosec-compiled-engine",
    "mixed-litserve-compiled-engine",
    "overhead",
    "mlperf",
    "online-load",
)


def published(name: str) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return run


def texts(axes: Axes) -> str:
    return " | ".join(text.get_text() for text in axes.texts)


def legend(axes: Axes) -> set[str]:
    found = axes.get_legend()
    assert found is not None
    return {text.get_text() for text in found.get_texts()}


def assert_readable(figure: Figure) -> None:
    """A title that names machine and date; on each panel a unit, and words beside the numbers."""
    assert figure.get_suptitle().count("measured on") == 1
    for axes in figure.axes:
        labels = [axes.get_xlabel(), axes.get_ylabel()]
        assert any(unit in label for label in labels for unit in ("ms", "per second", "rows", "%")), labels
        assert axes.get_title() or len(figure.axes) == 1 or axes.get_shared_x_axes().get_siblings(axes)
        assert axes.get_legend() is not None or axes.texts


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_are_drawn_with_titles_units_and_legends(name: str, tmp_path: Path) -> None:
    run = published(name)
    assert_readable(PLOTS[run["kind"]](run))
    plot(run, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_mixed_draws_the_parts_that_were_measured() -> None:
    run = published("mixed")
    both = draw_mixed(run)
    assert len(both.axes) == 4
    assert f"{run['mixed']['bulk_rows_per_s_alone']:,.0f}" in texts(both.axes[1])
    assert {"answered in time", "refused at once (429)", "expired (504)"} <= legend(both.axes[3])
    heights = [sum(bar.get_height() for bar in container) for container in both.axes[3].containers]
    assert sum(heights) == pytest.approx(100 * 4), "every request of the four rates has one outcome"
    assert len(draw_mixed({**run, "overload": None}).axes) == 2
    assert [axes.get_title() for axes in draw_mixed({**run, "mixed": None}).axes] == [
        axes.get_title() for axes in both.axes[2:]
    ]


def test_overhead_shows_every_round_beside_the_medians() -> None:
    run = published("overhead")
    idle, saturation, _, steps = draw_overhead(run).axes
    for axes, part, key in ((idle, "idle", "server_ms"), (saturation, "saturation", "rows_per_s")):
        drawn = {round(float(y), 6) for line in axes.lines for y in line.get_ydata()}  # type: ignore[union-attr]
        assert {round(result[part][key], 6) for result in run["results"]} <= drawn
    assert f"{run['steps_ms']['compute']:.3g} ms" in texts(steps)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "VALID\n24,051 queries, 0 late,\n0 wrong answers"),
        ({"valid": False, "by_outcome": {"200": 24_000, "429": 51}}, "INVALID"),
        ({"valid": False, "p99_ms": None, "p50_ms": None, "queries": None, "late": None}, "INVALID\n0 queries"),
    ],
)
def test_mlperf_says_the_verdict_and_its_counts(changes: Mapping[str, Any], said: str) -> None:
    run = copy.deepcopy(published("mlperf"))
    run["results"] = [{**run["results"][0], "queries": 24_051, "late": 0, "mismatches": 0, **changes}]
    figure = draw_mlperf(run)
    assert said in texts(figure.axes[0])
    assert ("51 failed" in texts(figure.axes[0])) == ("by_outcome" in changes)


def test_a_search_without_a_confirmed_rate_is_drawn() -> None:
    probes = [
        {"rate": rate, "passed": passed, "void": void, "latency": {"p99_ms": p99_ms}}
        for rate, passed, void, p99_ms in (
            (10.0, True, False, 20.0),
            (20.0, False, False, None),
            (15.0, True, True, 30.0),
        )
    ]
    run = envelope("online-search", {}, probes, found={"bound_ms": 100.0, "max_rate": 0.0})
    figure = draw_search(run)
    assert_readable(figure)
    assert "no rate was confirmed" in legend(figure.axes[0])
    found = {**run, "found": {"bound_ms": 100.0, "max_rate": 10.0}}
    assert "confirmed: 10 requests per second" in legend(draw_search(found).axes[0])
