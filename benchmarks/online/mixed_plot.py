"""The plot of an `online-mixed` run, from its JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import AMBER, BLUE, GREEN, GREY, PURPLE, RED, finish, plain_log, title

Probe = Mapping[str, Any]
_OUTCOMES: tuple[tuple[str, str, Callable[[Probe], int]], ...] = (
    ("answered in time", GREEN, lambda probe: probe["scheduled"] - probe["late"]),
    ("answered late", AMBER, lambda probe: probe["ok"] - (probe["scheduled"] - probe["late"])),
    ("refused at once (429)", BLUE, lambda probe: probe["by_status"].get("429", 0)),
    ("expired (504)", PURPLE, lambda probe: probe["by_status"].get("504", 0)),
    (
        "failed or unanswered",
        RED,
        lambda probe: (
            probe["offered"] - probe["ok"] - probe["by_status"].get("429", 0) - probe["by_status"].get("504", 0)
        ),
    ),
)
"""The outcomes of a request: name, colour, count."""


def draw_mixed(run: Mapping[str, Any]) -> Figure:
    """Interactive latency and bulk throughput, alone and beside each other; goodput and outcomes in overload."""
    parts = [name for name in ("mixed", "overload") if run[name]]
    figure = Figure(figsize=(12.5, 1.0 + 4.4 * max(1, len(parts))), layout="constrained")
    panels = figure.subplots(max(1, len(parts)), 2, squeeze=False)
    for row, part in zip(panels, parts, strict=False):
        if part == "mixed":
            _draw_interactive(row[0], run)
            _draw_bulk(row[1], run)
        else:
            _draw_goodput(row[0], run)
            _draw_outcomes(row[1], run)
    figure.suptitle(title(run, f"{run['system']}: bulk callers beside interactive ones" + _and_overload(parts)))
    return figure


def _and_overload(parts: Sequence[str]) -> str:
    return ", and overload" if "overload" in parts else ""


def _draw_interactive(axes: Axes, run: Mapping[str, Any]) -> None:
    """Each round's p50 and p99, and their medians."""
    for place, purpose in enumerate(("interactive alone", "interactive beside bulk")):
        for shift, key, colour in ((-0.15, "p50_ms", BLUE), (0.15, "p99_ms", AMBER)):
            rounds = [
                probe["latency"][key]
                for probe in run["results"]
                if probe["purpose"] == purpose and probe["latency"][key] is not None
            ]
            if rounds:
                label = None if place else f"{key[:3]}: each round, and the median"
                _draw_rounds(axes, place + shift, rounds, colour, label)
    low, high = axes.get_ylim()
    if high > 10 * max(low, 1e-9):
        plain_log(axes)
    else:
        axes.set_ylim(0, 1.3 * high)
    axes.set_xticks((0, 1), ("alone", "beside bulk callers"))
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylabel("latency, ms from the scheduled send")
    rate, config = run["mixed"]["interactive_rate"], run["config"]
    axes.set_title(
        f"Interactive: one-row requests, {rate:.0f} per second ({100 * config['share']:.0f} % of the capacity)"
    )
    finish(axes)


def _draw_rounds(axes: Axes, place: float, rounds: Sequence[float], colour: str, label: str | None) -> None:
    median = statistics.median(rounds)
    axes.plot([place] * len(rounds), rounds, "o", color=colour, alpha=0.5, markeredgewidth=0)
    axes.plot([place - 0.1, place + 0.1], [median, median], "-", color=colour, linewidth=3, label=label)
    text = f"{median:,.0f}" if median >= 100 else f"{median:.1f}"
    axes.annotate(text, (place + 0.12, median), va="center", color=colour)


def _draw_bulk(axes: Axes, run: Mapping[str, Any]) -> None:
    found, config = run["mixed"], run["config"]
    values = [found["bulk_rows_per_s_alone"], found["bulk_rows_per_s_beside"]]
    bars = axes.bar((0, 1), values, 0.5, color=BLUE, label="median of the rounds")
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=2)
    free = values[0] * (1 - config["share"])
    axes.plot([0.6, 1.4], [free, free], ":", color=GREY, label="capacity that interactive callers leave")
    axes.set_xticks((0, 1), ("alone", "beside interactive callers"))
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(0, 1.35 * max([*values, 1.0]))
    axes.set_ylabel("rows per second")
    axes.set_axisbelow(True)
    axes.set_title(f"Bulk: {config['bulk_connections']} callers, {config['bulk_rows']:,} rows in a request")
    finish(axes)


def _by_rate(run: Mapping[str, Any]) -> dict[float, list[Probe]]:
    """The probes of the overload part by their rate, lowest first."""
    grouped: dict[float, list[Probe]] = {}
    for probe in run["results"]:
        if probe["purpose"] in ("below capacity", "overload"):
            grouped.setdefault(probe["rate"], []).append(probe)
    return dict(sorted(grouped.items()))


def _draw_goodput(axes: Axes, run: Mapping[str, Any]) -> None:
    """Each round's goodput at each rate, and the medians."""
    grouped, bound_ms = _by_rate(run), run["config"]["bound_ms"]
    rates = list(grouped)
    axes.plot(rates, rates, color=GREY, linewidth=6, alpha=0.35, label="offered")
    medians = [statistics.median(probe["goodput_per_s"] for probe in probes) for probes in grouped.values()]
    axes.plot(rates, medians, "-", color=BLUE, linewidth=2, label=f"answered within {bound_ms:g} ms, median")
    points = [(rate, probe["goodput_per_s"]) for rate, probes in grouped.items() for probe in probes]
    axes.plot(*zip(*points, strict=True), "o", color=BLUE, alpha=0.5, markeredgewidth=0, label="each round")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("offered rate, one-row requests per second")
    axes.set_ylabel("answers in time per second")
    axes.set_title(f"Goodput up to {run['config']['overload']:g} times the capacity")
    finish(axes)


def _draw_outcomes(axes: Axes, run: Mapping[str, Any]) -> None:
    """At each rate, the share of each outcome among the requests of all rounds."""
    grouped, capacity = _by_rate(run), run["capacity_per_s"]
    below = [0.0] * len(grouped)
    for name, colour, count in _OUTCOMES:
        shares = [
            100 * sum(map(count, probes)) / max(1, sum(probe["offered"] for probe in probes))
            for probes in grouped.values()
        ]
        axes.bar(range(len(grouped)), shares, 0.6, bottom=below, color=colour, label=name)
        below = [low + share for low, share in zip(below, shares, strict=True)]
    axes.set_xticks(range(len(grouped)), [f"{rate:,.0f}\n({rate / capacity:.1f} x)" for rate in grouped])
    axes.set_ylim(0, 100)
    axes.set_xlabel("offered rate, requests per second (as a multiple of the capacity)")
    axes.set_ylabel("share of the requests, %")
    axes.set_title("Outcomes of the requests, all rounds")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
