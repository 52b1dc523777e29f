"""The plot of an `online-mlperf` run, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import AMBER, BLUE, GREEN, GREY, RED, title


def draw_mlperf(run: Mapping[str, Any]) -> Figure:
    """p50 and p99 at each rate beside the bound, with LoadGen's verdict and its counts."""
    results, bound_ms = sorted(run["results"], key=lambda result: float(result["rate"])), run["config"]["bound_ms"]
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    axes = figure.subplots()
    _draw_bars(axes, results, bound_ms)
    axes.axhline(bound_ms, color=GREY, linestyle=":", label=f"bound of the p99: {bound_ms:g} ms")
    axes.set_xticks(range(len(results)), [f"{result['rate']:g}" for result in results])
    axes.set_xlim(-1.2, len(results) + 0.2)
    axes.set_xlabel("offered rate, requests per second (LoadGen's own Poisson schedule)")
    axes.set_ylabel("latency, ms from the scheduled send")
    axes.set_ylim(0, 1.45 * max([bound_ms, *(result["p99_ms"] or 0 for result in results)]))
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="upper right")
    figure.suptitle(title(run, "MLPerf's LoadGen, scenario Server: latency and verdict"))
    return figure


def _draw_bars(axes: Axes, results: Sequence[Mapping[str, Any]], bound_ms: float) -> None:
    for shift, key, colour in ((-0.2, "p50_ms", BLUE), (0.2, "p99_ms", AMBER)):
        places = [place + shift for place in range(len(results))]
        bars = axes.bar(places, [result[key] or 0 for result in results], 0.36, color=colour, label=key[:3])
        axes.bar_label(bars, [f"{result[key]:.1f}" if result[key] else "-" for result in results], padding=2)
    for place, result in enumerate(results):
        verdict = "VALID" if result["valid"] else "INVALID"
        counts = (
            f"{result['queries'] or 0:,} queries, {result['late'] or 0:,} late,\n{result['mismatches']:,} wrong answers"
        )
        failed = sum(count for outcome, count in result["by_outcome"].items() if outcome != "200")
        text = f"{verdict}\n{counts}" + (f", {failed:,} failed" if failed else "")
        height = max(bound_ms, result["p99_ms"] or 0) * 1.05
        axes.text(place, height, text, ha="center", va="bottom", color=GREEN if result["valid"] else RED)
