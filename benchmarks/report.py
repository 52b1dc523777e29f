"""Plots of a run's JSON, by its `kind`: `python -m benchmarks.report FILE.json FILE.png` draws one again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.machine import describe

Result = Mapping[str, Any]

SIZE_INCHES = (9.0, 9.0)
DPI = 110
_BLUE, _AMBER, _RED, _GREY = "#2f6db3", "#d98e04", "#b3372f", "#777777"
_ENGINE_TIMES = (
    ("ours_ms", _BLUE, "this engine"),
    ("library_ms", _AMBER, "library, cached"),
    ("uncached_ms", _RED, "library, uncached"),
)
_ENGINE_RATIOS = (
    ("speedup", _AMBER, "against the library's cached predict"),
    ("speedup_uncached", _RED, "against its uncached predict"),
)
_LATENCY = ((50, _BLUE), (90, _AMBER), (99, _RED))


def plot(run: Mapping[str, Any], path: Path) -> None:
    """Draw a run as PNG. Raises ValueError for a kind that has no plot."""
    draw = {"online-load": _draw_load, "offline-engine": _draw_engine}.get(run["kind"])
    if draw is None:
        raise ValueError(f"no plot for a run of kind {run['kind']!r}")
    figure = draw(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def _draw_load(run: Mapping[str, Any]) -> Figure:
    results = sorted(run["results"], key=lambda result: float(result["rate"]))
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    latency, goodput, batch = figure.subplots(3, 1, sharex=True, height_ratios=[2.2, 1, 1])
    _draw_latency(latency, results, run["config"])
    _draw_goodput(goodput, results, run["config"])
    _draw_batch_rows(batch, results)
    batch.set_xlabel("offered rate, requests per second (open loop, Poisson)")
    figure.suptitle(_title(run, f"model {run['config']['model']}: latency, goodput and batches under load"))
    return figure


def _draw_latency(axes: Axes, results: Sequence[Result], config: Mapping[str, Any]) -> None:
    for percent, colour in _LATENCY:
        key, reliable = f"p{percent}_ms", f"p{percent}_reliable"
        points = [
            (each["rate"], each["latency"][key], each["void"] or not each["latency"][reliable]) for each in results
        ]
        _line(axes, points, colour, f"p{percent}")
    axes.axhline(config["deadline_ms"], color=_GREY, linestyle=":", label=f"deadline {config['deadline_ms']:g} ms")
    _plain_log(axes)
    axes.set_ylabel("ms from the scheduled send\n(hollow: void or too few samples)")
    _finish(axes)


def _draw_goodput(axes: Axes, results: Sequence[Result], config: Mapping[str, Any]) -> None:
    offered = [result["scheduled"] / config["duration"] for result in results]
    axes.plot([result["rate"] for result in results], offered, color=_GREY, linestyle=":", label="offered")
    _line(axes, [(each["rate"], each["ok_per_s"], each["void"]) for each in results], _AMBER, "answered 200")
    label = f"goodput: 200 within {config['deadline_ms']:g} ms"
    _line(axes, [(each["rate"], each["goodput_per_s"], each["void"]) for each in results], _BLUE, label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests per second")
    _finish(axes)


def _draw_batch_rows(axes: Axes, results: Sequence[Result]) -> None:
    for key, colour, label in (
        ("per_row", _AMBER, "batch that a row rode in, mean"),
        ("per_batch", _BLUE, "batch, mean"),
    ):
        _line(axes, [(each["rate"], each["batch_rows"][key], each["void"]) for each in results], colour, label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("rows in a batch")
    _finish(axes)


def _line(axes: Axes, points: Sequence[tuple[float, float | None, bool]], colour: str, label: str) -> None:
    """Points of (x, y, hollow); a y of None is left out."""
    known = [(x, y, hollow) for x, y, hollow in points if y is not None]
    axes.plot([x for x, _, _ in known], [y for _, y, _ in known], "-", color=colour, label=label)
    for x, y, hollow in known:
        axes.plot(x, y, "o", color=colour, markerfacecolor="white" if hollow else colour)


def _plain_log(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def _draw_engine(run: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    time, ratio = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    cases = _by_case(run["results"])
    for index, (case, results) in enumerate(cases.items()):
        style, prefix = ("-", "--", "-.", ":")[index % 4], f"{case}: " if len(cases) > 1 else ""
        rows = [result["rows"] for result in results]
        for axes, lines in ((time, _ENGINE_TIMES), (ratio, _ENGINE_RATIOS)):
            for key, colour, label in lines:
                values = [result[key] for result in results]
                axes.plot(rows, values, "o", linestyle=style, color=colour, label=prefix + label)
    time.set_xscale("log")
    _plain_log(time)
    time.set_ylabel("ms per predict (median)")
    _plain_log(ratio)
    ratio.axhline(1, color=_GREY, linestyle=":")
    ratio.set_ylabel("times faster (median of pairs)")
    every = sorted({result["rows"] for result in run["results"]})
    ratio.set_xticks(every, [str(rows) for rows in every])
    ratio.xaxis.minorticks_off()
    ratio.set_xlabel("query rows in one predict")
    _finish(time)
    _finish(ratio)
    figure.suptitle(_title(run, "one predict: this engine and the library, measured in pairs"))
    return figure


def _by_case(results: Sequence[Result]) -> dict[str, list[Result]]:
    cases: dict[str, list[Result]] = {}
    for result in results:
        cases.setdefault(result["case"], []).append(result)
    return cases


def _title(run: Mapping[str, Any], subject: str) -> str:
    commit = (run["commit"] or "no commit")[:10] + (" + changes" if run["dirty"] else "")
    return f"{subject}\n{describe(run['machine'])}; {run['started_at'][:10]}, {commit}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path)
    given = parser.parse_args(arguments)
    plot(json.loads(given.json.read_text(encoding="utf-8")), given.png)


if __name__ == "__main__":
    main()
