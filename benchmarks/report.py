"""Plots of a run's JSON, by its `kind`: `python -m benchmarks.report FILE.json FILE.png` draws one again."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.machine import describe

Result = Mapping[str, Any]

SIZE_INCHES = (9.0, 9.0)
DPI = 110
_BLUE, _AMBER, _RED, _GREY = "#2f6db3", "#d98e04", "#b3372f", "#777777"
ENGINE_SIZE_INCHES = (12.0, 4.2)
"""Of one architecture's row of panels."""
_OURS = (_BLUE, "#4aa3a2", "#7a5fb5", "#1f9d55")
"""By the precisions of ours, in the order that they come in."""
_STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
_LATENCY = ((50, _BLUE), (90, _AMBER), (99, _RED))


def plot(run: Mapping[str, Any], path: Path) -> None:
    """Draw a run as PNG. Raises ValueError for a kind that has no plot."""
    from benchmarks.online import plots  # which draws by this module's means

    draw = {
        "online-load": _draw_load,
        "offline-engine": _draw_engine,
        "online-search": plots.draw_search,
        "online-peers": plots.draw_peers,
    }.get(run["kind"])
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
    figure.suptitle(title(run, f"model {run['config']['model']}: latency, goodput and batches under load"))
    return figure


def _draw_latency(axes: Axes, results: Sequence[Result], config: Mapping[str, Any]) -> None:
    for percent, colour in _LATENCY:
        key, reliable = f"p{percent}_ms", f"p{percent}_reliable"
        points = [
            (each["rate"], each["latency"][key], each["void"] or not each["latency"][reliable]) for each in results
        ]
        _line(axes, points, colour, f"p{percent}")
    axes.axhline(config["deadline_ms"], color=_GREY, linestyle=":", label=f"deadline {config['deadline_ms']:g} ms")
    plain_log(axes)
    axes.set_ylabel("ms from the scheduled send\n(hollow: void or too few samples)")
    finish(axes)


def _draw_goodput(axes: Axes, results: Sequence[Result], config: Mapping[str, Any]) -> None:
    offered = [result["scheduled"] / config["duration"] for result in results]
    axes.plot([result["rate"] for result in results], offered, color=_GREY, linestyle=":", label="offered")
    _line(axes, [(each["rate"], each["ok_per_s"], each["void"]) for each in results], _AMBER, "answered 200")
    label = f"goodput: 200 within {config['deadline_ms']:g} ms"
    _line(axes, [(each["rate"], each["goodput_per_s"], each["void"]) for each in results], _BLUE, label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests per second")
    finish(axes)


def _draw_batch_rows(axes: Axes, results: Sequence[Result]) -> None:
    for key, colour, label in (
        ("per_row", _AMBER, "batch that a row rode in, mean"),
        ("per_batch", _BLUE, "batch, mean"),
    ):
        _line(axes, [(each["rate"], each["batch_rows"][key], each["void"]) for each in results], colour, label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("rows in a batch")
    finish(axes)


def _line(axes: Axes, points: Sequence[tuple[float, float | None, bool]], colour: str, label: str) -> None:
    """Points of (x, y, hollow); a y of None is left out."""
    known = [(x, y, hollow) for x, y, hollow in points if y is not None]
    axes.plot([x for x, _, _ in known], [y for _, y, _ in known], "-", color=colour, label=label)
    for x, y, hollow in known:
        axes.plot(x, y, "o", color=colour, markerfacecolor="white" if hollow else colour)


def plain_log(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def _draw_engine(run: Mapping[str, Any]) -> Figure:
    """A row of panels for each architecture: ms per predict, how many times faster ours is, and what is what."""
    by_arch = _grouped(run["results"], "arch")
    width, height = ENGINE_SIZE_INCHES
    figure = Figure(figsize=(width, height * len(by_arch)), layout="constrained")
    panels = figure.subplots(len(by_arch), 2, squeeze=False, width_ratios=[1.5, 1])
    for (time, ratio), (arch, results) in zip(panels, by_arch.items(), strict=True):
        _draw_predicts(time, ratio, results)
        time.set_title(f"{arch}: ms per predict (median)", loc="left")
        ratio.set_title("times faster than the library", loc="left")
    figure.suptitle(title(run, "one predict: this engine and the library, measured in pairs"))
    return figure


def _draw_predicts(time: Axes, ratio: Axes, results: Sequence[Result]) -> None:
    """Colours tell who answers, line styles tell the context."""
    colours = dict(zip(dict.fromkeys(map(_way, results)), itertools.cycle(_OURS)))
    styles = dict(zip(_grouped(results, "case"), itertools.cycle(_STYLES)))
    key = [Line2D([], [], marker="o", color=colour, label=way) for way, colour in colours.items()]
    key.append(Line2D([], [], marker="o", color=_AMBER, label="library, cached"))
    if any(result.get("uncached_ms") for result in results):
        key.append(Line2D([], [], marker="o", color=_RED, label="library, uncached"))
    key += [Line2D([], [], linestyle=style, color=_GREY, label=case) for case, style in styles.items()]
    for case, of_case in _grouped(results, "case").items():
        for way, points in _by(of_case, _way).items():
            _curve(time, points, "ours_ms", colours[way], styles[case])
            _curve(ratio, points, "speedup", colours[way], styles[case])
            _curve(ratio, points, "speedup_uncached", _RED, styles[case])
        # the library is timed beside each of ours; the first of these times is as good as any
        beside = next(iter(_by(of_case, _way).values()))
        _curve(time, beside, "library_ms", _AMBER, styles[case])
        _curve(time, beside, "uncached_ms", _RED, styles[case])
    every = sorted({result["rows"] for result in results})
    ratio.axhline(1, color=_GREY, linestyle=":")
    for axes in (time, ratio):
        axes.set_xscale("log")
        plain_log(axes)
        axes.set_xticks(every, [str(rows) for rows in every])
        axes.xaxis.minorticks_off()
        axes.set_xlabel("query rows in one predict")
        axes.grid(alpha=0.3)
    ratio.legend(handles=key, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize="small", frameon=False)


def _way(result: Result) -> str:
    """How ours was run."""
    name = "ours" if result.get("backend", "compiled") == "compiled" else "ours by the library's forward"
    return f"{name}, {result.get('precision', 'float32')}, {result.get('device', 'cpu')}"


def _curve(axes: Axes, results: Sequence[Result], key: str, colour: str, style: str) -> None:
    """Of the results that have a value; nothing at all where none has."""
    known = sorted((each["rows"], each[key]) for each in results if each.get(key) is not None)
    if known:
        axes.plot(*zip(*known, strict=True), marker="o", linestyle=style, color=colour)


def _grouped(results: Sequence[Result], key: str) -> dict[str, list[Result]]:
    """By a field; a run made before there was an `arch` has its case instead."""
    return _by(results, lambda result: str(result.get(key, result["case"])))


def _by(results: Sequence[Result], name: Callable[[Result], str]) -> dict[str, list[Result]]:
    """In the order of the names' first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(name(result), []).append(result)
    return groups


def title(run: Mapping[str, Any], subject: str) -> str:
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
