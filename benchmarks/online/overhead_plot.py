"""The plot of an `online-overhead` run, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import AMBER, BLUE, GREY, TEAL, title

_PARTS = (
    ("share", "time that the bare engine needs for the same batches", BLUE),
    ("slower_in_server", "further time that the batches take in the server", AMBER),
    ("between_batches", "time without a batch on the device", GREY),
)
"""Where a second of the server goes at saturation."""


def draw_overhead(run: Mapping[str, Any]) -> Figure:
    """One row on an idle server, rows per second at saturation, where a second goes, and the steps of one request."""
    figure = Figure(figsize=(12.0, 8.6), layout="constrained")
    (idle, saturation), (second, steps) = figure.subplots(2, 2)
    _draw_pairs(idle, run, "idle", "engine_ms", "server_ms")
    idle.set_ylabel("ms for one row, median")
    idle.set_title("One row on an idle server, and in the bare engine")
    _draw_pairs(saturation, run, "saturation", "engine_rows_per_s", "rows_per_s")
    saturation.set_ylabel("rows per second")
    saturation.set_title(f"Saturation: {run['config']['connections']} callers, and the bare engine on the same batches")
    _draw_second(second, run)
    _draw_steps(steps, run["steps_ms"])
    figure.suptitle(
        title(run, "What the server costs beside the engine in it (medians of the rounds; dots: each round)")
    )
    return figure


def _rounds(run: Mapping[str, Any], name: str, part: str, key: str) -> Sequence[float]:
    return [result[part][key] for result in run["results"] if result["system"] == name]


def _draw_pairs(axes: Axes, run: Mapping[str, Any], part: str, engine: str, server: str) -> None:
    """Two bars for each system: the bare engine, and the server."""
    names = list(run["systems"])
    for shift, key, colour, label in ((-0.2, engine, TEAL, "bare engine"), (0.2, server, BLUE, "server")):
        values = [run["systems"][name][part][key] for name in names]
        bars = axes.bar([place + shift for place in range(len(names))], values, 0.36, color=colour, label=label)
        axes.bar_label(
            bars,
            [f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in values],
            label_type="center",
            color="white",
        )
        for place, name in enumerate(names):
            dots = _rounds(run, name, part, key)
            axes.plot([place + shift] * len(dots), dots, "o", color="black", markersize=3, alpha=0.6)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", ncols=2)


def _draw_second(axes: Axes, run: Mapping[str, Any]) -> None:
    """Medians need not add up to 100 %: each is taken over the rounds by itself."""
    names = list(run["systems"])
    for number, (key, label, colour) in enumerate(_PARTS):
        values = [100 * run["systems"][name]["saturation"][key] for name in names]
        places = [place + 0.27 * (number - 1) for place in range(len(names))]
        axes.bar(places, values, 0.25, color=colour, label=label)
        for place, name, value in zip(places, names, values, strict=True):
            dots = [100 * value for value in _rounds(run, name, "saturation", key)]
            axes.plot([place] * len(dots), dots, "o", color="black", markersize=3, alpha=0.6)
            axes.text(place, max([value, *dots]) + 3, f"{value:.0f} %", ha="center")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.35 * axes.get_ylim()[1])
    axes.set_ylabel("share of the time at saturation, %")
    axes.set_title("Where a second goes at saturation")
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="upper right")


def _draw_steps(axes: Axes, steps_ms: Mapping[str, float]) -> None:
    names = list(steps_ms)
    bars = axes.barh(names, list(steps_ms.values()), color=BLUE)
    axes.bar_label(bars, [f"{value:.3g} ms" for value in steps_ms.values()], padding=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(right=5 * max(steps_ms.values()))
    axes.invert_yaxis()
    axes.set_xlabel("ms, median (logarithmic)")
    axes.set_title("Steps of one lone request, timed without a server")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
