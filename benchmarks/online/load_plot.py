"""The plot of an `online-load` run, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import AMBER, BLUE, GREY, RED, finish, plain_log, title

Result = Mapping[str, Any]
Point = tuple[float, float | None, bool]
"""(x, y, is hollow)."""

SIZE_INCHES = (9.0, 9.0)
_LATENCY = ((50, BLUE), (90, AMBER), (99, RED))


def draw_load(run: Mapping[str, Any]) -> Figure:
    """Latency percentiles, goodput and batch sizes against the offered rate."""
    results, config = sorted(run["results"], key=lambda result: float(result["rate"])), run["config"]
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    latency, goodput, batch = figure.subplots(3, 1, sharex=True, height_ratios=[2.2, 1, 1])
    _draw_latency(latency, results, config)
    _draw_goodput(goodput, results, config, run.get("knee", {}).get("highest_good_rate"))
    _draw_batch_rows(batch, results)
    arrivals = str(config.get("arrivals", "poisson")).capitalize()
    batch.set_xlabel(f"offered rate, requests per second (open loop, {arrivals} arrivals)")
    rows = config.get("rows", 1)
    size = "one-row requests" if rows == 1 else f"requests of {rows} rows"
    figure.suptitle(title(run, f"Model {config['model']}, {size}: latency, goodput and batch size under load"))
    return figure


def _draw_latency(axes: Axes, results: Sequence[Result], config: Mapping[str, Any]) -> None:
    for percent, colour in _LATENCY:
        key, reliable = f"p{percent}_ms", f"p{percent}_reliable"
        points = [
            (each["rate"], each["latency"][key], each["void"] or not each["latency"][reliable]) for each in results
        ]
        _line(axes, points, colour, f"p{percent}")
    axes.axhline(config["deadline_ms"], color=GREY, linestyle=":", label=f"deadline {config['deadline_ms']:g} ms")
    plain_log(axes)
    axes.set_ylabel("latency, ms from the scheduled send\n(hollow: void, or too few requests)")
    finish(axes)


def _draw_goodput(axes: Axes, results: Sequence[Result], config: Mapping[str, Any], knee: float | None) -> None:
    """`knee`: the highest rate of a run with `--until-knee` at which nearly all requests were answered in time."""
    offered = [result["scheduled"] / config["duration"] for result in results]
    axes.plot([result["rate"] for result in results], offered, color=GREY, linewidth=6, alpha=0.35, label="offered")
    _line(axes, [(each["rate"], each["ok_per_s"], each["void"]) for each in results], AMBER, "answered with 200")
    label = f"goodput: answered with 200 within {config['deadline_ms']:g} ms"
    _line(axes, [(each["rate"], each["goodput_per_s"], each["void"]) for each in results], BLUE, label)
    if knee is not None:
        axes.axvline(knee, color=GREY, linestyle="--", label=f"knee: up to {knee:g}/s nearly all were in time")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests per second")
    finish(axes)


def _draw_batch_rows(axes: Axes, results: Sequence[Result]) -> None:
    for key, colour, label in (
        ("per_row", AMBER, "mean over rows: size of the batch that the row was in"),
        ("per_batch", BLUE, "mean over batches"),
    ):
        _line(axes, [(each["rate"], each["batch_rows"][key], each["void"]) for each in results], colour, label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("rows in a batch")
    finish(axes)


def _line(axes: Axes, points: Sequence[Point], colour: str, label: str) -> None:
    """A line with markers; a point without y is left out."""
    known = [(x, y, hollow) for x, y, hollow in points if y is not None]
    axes.plot([x for x, _, _ in known], [y for _, y, _ in known], "-", color=colour, label=label)
    for x, y, hollow in known:
        axes.plot(x, y, "o", color=colour, markerfacecolor="white" if hollow else colour)
