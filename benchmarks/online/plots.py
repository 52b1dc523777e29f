"""Plots of a search and of the peers' run, from their JSON alone; see `benchmarks.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import finish, plain_log, title

COMPILED, TABPFN, _GREY, _RED = "#2f6db3", "#d98e04", "#777777", "#b3372f"
_BAR_INCHES, _WIDTH_INCHES = 0.42, 12.0


def draw_search(run: Mapping[str, Any]) -> Figure:
    """Every probe: its rate, its p99, and its verdict."""
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    axes = figure.subplots()
    for label, colour, probes in (
        ("passed", COMPILED, [probe for probe in run["results"] if probe["passed"] and not probe["void"]]),
        ("failed", _RED, [probe for probe in run["results"] if not probe["passed"] and not probe["void"]]),
        ("void", _GREY, [probe for probe in run["results"] if probe["void"]]),
    ):
        known = [probe for probe in probes if probe["latency"]["p99_ms"] is not None]
        points = [probe["rate"] for probe in known], [probe["latency"]["p99_ms"] for probe in known]
        axes.plot(*points, "o", color=colour, label=label)
    found = run["found"]
    axes.axhline(found["bound_ms"], color=_GREY, linestyle=":", label=f"bound {found['bound_ms']:g} ms")
    axes.axvline(found["max_rate"], color=COMPILED, linestyle=":", label=f"highest rate {found['max_rate']:g}/s")
    plain_log(axes)
    axes.set_xlabel("offered rate, requests per second")
    axes.set_ylabel("p99, ms from the scheduled send")
    finish(axes)
    figure.suptitle(title(run, "search of the highest rate within the bound"))
    return figure


def draw_peers(run: Mapping[str, Any]) -> Figure:
    """Bars by system: highest rate, latency at half load, CPU per request. The colour tells whose engine answers.

    Half load is that of the best peer with tabpfn's engine, or with the compiled one where no such peer keeps a rate.
    """
    systems = dict(sorted(run["systems"].items(), key=lambda item: item[1]["max_rate_p99_100ms"] or 0.0))
    figure = Figure(figsize=(_WIDTH_INCHES, 1.6 + _BAR_INCHES * len(systems)), layout="constrained")
    rate, latency, cpu = figure.subplots(1, 3, sharey=True)
    _bars(rate, systems, "max_rate_p99_100ms")
    rate.set_xlabel("highest rate with p99 within 100 ms, 1/s")
    is_by_tabpfn = bool(run["rates"].get("half_load")) or "half_load_compiled_engine" not in run["rates"]
    load, cpu_key = ("half_load", "") if is_by_tabpfn else ("half_load_compiled_engine", "_half_load_compiled_engine")
    _bars(latency, systems, f"p99_ms_{load}", alpha=0.45)
    _bars(latency, systems, f"p50_ms_{load}")
    latency.set_xlabel(f"p50 and p99 (pale), ms{_at_rates(run['results'], load)}")
    _bars(cpu, systems, f"cpu_ms_per_request{cpu_key}")
    cpu.set_xlabel("CPU per request at that rate, ms")
    for colour, engine in ((COMPILED, "compiled engine"), (TABPFN, "tabpfn's engine")):
        rate.plot([], [], "s", color=colour, label=engine)
    rate.legend(loc="lower right")
    figure.suptitle(title(run, "the same model behind each server, one-row requests (medians of the rounds)"))
    return figure


def _at_rates(probes: Sequence[Mapping[str, Any]], purpose: str) -> str:
    """The rate of the probes made for it; runs before December 2026 had one for each round."""
    rates = [round(probe["rate"]) for probe in probes if probe["purpose"] == purpose]
    if not rates:
        return ""
    return f", at {min(rates)}/s" if min(rates) == max(rates) else f", at {min(rates)} to {max(rates)}/s"


def _bars(axes: Axes, systems: Mapping[str, Mapping[str, Any]], key: str, alpha: float = 1.0) -> None:
    names: Sequence[str] = list(systems)
    values = [systems[name][key] or 0.0 for name in names]
    colours = [COMPILED if systems[name]["engine"] == "compiled" else TABPFN for name in names]
    axes.barh(names, values, color=colours, alpha=alpha)
    axes.grid(alpha=0.3, axis="x")
