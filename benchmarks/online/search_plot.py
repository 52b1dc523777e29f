"""The plot of an `online-search` run, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.figures import BLUE, GREY, RED, finish, plain_log, title


def draw_search(run: Mapping[str, Any]) -> Figure:
    """Every probe: its rate, its p99, and its verdict."""
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    axes = figure.subplots()
    for label, colour, probes in (
        ("probe passed", BLUE, [probe for probe in run["results"] if probe["passed"] and not probe["void"]]),
        ("probe failed", RED, [probe for probe in run["results"] if not probe["passed"] and not probe["void"]]),
        ("void: the load generator lagged", GREY, [probe for probe in run["results"] if probe["void"]]),
    ):
        known = [probe for probe in probes if probe["latency"]["p99_ms"] is not None]
        points = [probe["rate"] for probe in known], [probe["latency"]["p99_ms"] for probe in known]
        axes.plot(*points, "o", color=colour, label=label)
    found = run["found"]
    axes.axhline(found["bound_ms"], color=GREY, linestyle=":", label=f"bound: {found['bound_ms']:g} ms")
    highest = (
        f"confirmed: {found['max_rate']:.0f} requests per second" if found["max_rate"] else "no rate was confirmed"
    )
    axes.axvline(found["max_rate"], color=BLUE, linestyle=":", label=highest)
    plain_log(axes)
    axes.set_xlabel("offered rate, requests per second (open loop)")
    axes.set_ylabel("p99 latency, ms from the scheduled send")
    finish(axes)
    figure.suptitle(title(run, f"Search for the highest rate whose p99 stays within {found['bound_ms']:g} ms"))
    return figure
