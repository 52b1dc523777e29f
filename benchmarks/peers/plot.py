"""The plot of an `online-peers` run, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.figures import COMPILED, GREY, TABPFN, title

System = Mapping[str, Any]
_BAR_INCHES, _WIDTH_INCHES = 0.42, 14.0
_NOT_SUSTAINED = "not sustained"
_NAMES = {
    "tabpfn-serve": "tabpfn-serve (Ray)",
    "tabpfn-serve-uvicorn": "tabpfn-serve (uvicorn)",
    "tabpfn-serve-tabpfn-backend": "tabpfn-serve (uvicorn)",
}


def draw_peers(run: Mapping[str, Any]) -> Figure:
    """Bars by system: highest rate, latency and CPU time at half load. The colour stands for the engine.

    Half load is that of the best peer with tabpfn's engine, or with the compiled one where no such peer keeps a rate.
    """
    systems = dict(sorted(run["systems"].items(), key=lambda item: _order(item[1])))
    figure = Figure(figsize=(_WIDTH_INCHES, 1.8 + _BAR_INCHES * len(systems)), layout="constrained")
    rate, latency, cpu = figure.subplots(1, 3, sharey=True, width_ratios=(1.3, 1.3, 1))
    is_by_tabpfn = bool(run["rates"].get("half_load")) or "half_load_compiled_engine" not in run["rates"]
    load = "half_load" if is_by_tabpfn else "half_load_compiled_engine"
    _draw_rates(rate, systems)
    _draw_latency(latency, systems, run["results"], load)
    _draw_cpu(cpu, systems, run["results"], load)
    rate.set_title("Highest rate with p99 within 100 ms\n")
    latency.set_title(f"Latency at half of the best peer's rate\n{at_rates(run['results'], load)}")
    cpu.set_title("CPU time at the same rate\n")
    rate.set_yticks(range(len(systems)), [_label(name, found) for name, found in systems.items()])
    figure.legend(handles=_key(systems), loc="outside lower center", ncols=2)
    figure.suptitle(title(run, "The same model behind each server: one-row requests, medians of the rounds"))
    return figure


def _order(found: System) -> tuple[float, float]:
    """The highest rate stands at the top; of equal rates, the lower idle latency."""
    return found["max_rate_p99_100ms"] or 0.0, -(found.get("idle_p50_ms") or float("inf"))


def _label(name: str, found: System) -> str:
    """Server and engine, since a bar of length 0 shows no colour."""
    return f"{_NAMES.get(name, name.removesuffix('-compiled-engine'))}, {found['engine']}"


def _key(systems: Mapping[str, System]) -> list[Any]:
    rounds = max((len(found["max_rates"]) for found in systems.values()), default=0)
    return [
        Patch(color=COMPILED, label="compiled: the engine of tabpfn-serve"),
        Patch(color=TABPFN, label="tabpfn: the classifier of the tabpfn package, with its own settings"),
        Line2D([], [], color="black", marker="|", label=f"lowest to highest of {rounds} rounds"),
        Line2D(
            [], [], color="white", label="0: no rate was sustained. not sustained: the system does not keep this rate"
        ),
    ]


def _draw_rates(axes: Axes, systems: Mapping[str, System]) -> None:
    values = [found["max_rate_p99_100ms"] for found in systems.values()]
    rounds = [found["max_rates"] for found in systems.values()]
    _bars(axes, systems, values, rounds, "0", ".0f")
    axes.set_xlabel("requests per second (Poisson arrivals)")


def _draw_latency(axes: Axes, systems: Mapping[str, System], probes: Sequence[Mapping[str, Any]], load: str) -> None:
    """p99 as a bar with the spread of its rounds, p50 as a mark on it."""
    values = [found[f"p99_ms_{load}"] for found in systems.values()]
    rounds = [_of_rounds(probes, name, load, "latency", "p99_ms") for name in systems]
    _bars(axes, systems, values, rounds, _NOT_SUSTAINED, ".0f")
    medians = [found[f"p50_ms_{load}"] for found in systems.values()]
    places = [place for place, p50 in enumerate(medians) if p50 is not None]
    axes.plot([medians[place] for place in places], places, "|", color="white", markersize=14, markeredgewidth=2.5)
    axes.set_xlabel("ms from the scheduled send: bar p99, white mark p50")


def _draw_cpu(axes: Axes, systems: Mapping[str, System], probes: Sequence[Mapping[str, Any]], load: str) -> None:
    suffix = "" if load == "half_load" else f"_{load}"
    values = [found[f"cpu_ms_per_request{suffix}"] for found in systems.values()]
    rounds = [_of_rounds(probes, name, load, "cpu_ms_per_request") for name in systems]
    _bars(axes, systems, values, rounds, _NOT_SUSTAINED, ".1f")
    axes.set_xlabel("ms of all the system's processes per request")


def _of_rounds(probes: Sequence[Mapping[str, Any]], name: str, purpose: str, *path: str) -> list[float]:
    """One number of each probe of a system that was made for `purpose`; void probes are left out."""
    found = []
    for probe in probes:
        if probe["system"] == name and probe["purpose"] == purpose and not probe["void"]:
            value: Any = probe
            for key in path:
                value = value.get(key)
            if value is not None:
                found.append(value)
    return found


def _bars(
    axes: Axes,
    systems: Mapping[str, System],
    values: Sequence[float | None],
    rounds: Sequence[Sequence[float]],
    nothing: str,
    form: str,
) -> None:
    """A bar for each system, a line from its lowest to its highest round, and the value or `nothing` beside it."""
    places = range(len(systems))
    colours = [COMPILED if found["engine"] == "compiled" else TABPFN for found in systems.values()]
    axes.barh(places, [value or 0.0 for value in values], color=colours)
    widest = max([1e-9, *(value or 0.0 for value in values), *(max(found, default=0.0) for found in rounds)])
    for place, value, found in zip(places, values, rounds, strict=True):
        end = max([value or 0.0, *found])
        if len(found) > 1 and max(found) > min(found):
            axes.plot([min(found), max(found)], [place, place], "-|", color="black", linewidth=1.2, markersize=7)
        text = f"{value:{form}}" if value else nothing
        axes.text(end + 0.015 * widest, place, text, va="center", color="black" if value else GREY, fontsize="small")
    axes.set_xlim(0, 1.22 * widest)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)


def at_rates(probes: Sequence[Mapping[str, Any]], purpose: str) -> str:
    """The rate of the probes made for a purpose, in words; runs before December 2026 had one rate for each round."""
    rates = sorted(probe["rate"] for probe in probes if probe["purpose"] == purpose)
    if not rates:
        return ""
    low, high = round(rates[0]), round(rates[-1])
    return f"{low} requests per second" if low == high else f"{low} to {high} requests per second"
