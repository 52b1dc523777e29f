"""The plot of an `online-gpu-like` run, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import AMBER, BLUE, GREEN, GREY, PURPLE, TEAL, finish, plain_log, title

_COLOURS = (BLUE, AMBER, PURPLE, GREEN)
_PARTS = (
    ("front", "front: all other processes", BLUE),
    ("core", "core", TEAL),
    ("engine", "process of the device", AMBER),
)


def draw_gpu_like(run: Mapping[str, Any]) -> Figure:
    """Requests per second, latency and the device's idle share against callers, and CPU time by process."""
    figure = Figure(figsize=(12.0, 8.8), layout="constrained")
    (rate, latency), (idle, cpu) = figure.subplots(2, 2)
    names = list(dict.fromkeys(found["system"] for found in run["results"]))
    for name, colour in zip(names, _COLOURS, strict=False):
        found = [each for each in run["results"] if each["system"] == name]
        _draw_line(rate, found, "rate", colour, name)
        _draw_line(latency, found, "p50_ms", colour, f"{name}, p50")
        _draw_line(latency, found, "p99_ms", colour, f"{name}, p99", "--")
        _draw_line(idle, found, "device_idle_share", colour, name, scale=100)
    for axes, label, subject in (
        (rate, "answers per second", "Rate"),
        (latency, "ms", "Latency of a closed loop"),
        (idle, "% of the time", "Device without a batch"),
    ):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("callers")
        axes.set_ylabel(label)
        axes.set_title(subject)
        if axes is latency:
            plain_log(axes)
        else:
            axes.set_ylim(bottom=0)
        finish(axes)
    _draw_cpu(cpu, run["results"])
    device = run["device"]
    figure.suptitle(
        title(
            run,
            f"Servers in front of a simulated GPU: {device['fixed_ms']:g} ms a batch + {device['per_row_us']:g} us a "
            f"row; rows of a request: {run['config']['rows']}",
        )
    )
    return figure


def _draw_line(
    axes: Axes, found: Sequence[Mapping[str, Any]], key: str, colour: str, label: str, style: str = "-", scale: int = 1
) -> None:
    callers, values = [each["callers"] for each in found], [scale * each[key] for each in found]
    axes.plot(callers, values, f"o{style}", color=colour, label=label)


def _draw_cpu(axes: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    """A bar for each result, its parts side by side. A part that no process does alone is None."""
    places = range(len(results))
    left = [0.0] * len(results)
    for part, label, colour in _PARTS:
        values = [each["cpu_ms_per_request"][part] or 0.0 for each in results]
        if any(values):
            axes.barh(places, values, left=left, color=colour, label=label)
        left = [before + value for before, value in zip(left, values, strict=True)]
    callers = [each["callers_cpu_ms_per_request"] for each in results]
    axes.barh(places, callers, left=left, color=GREY, label="the callers, on the same cores")
    axes.set_yticks(places, [f"{each['system']}, {each['callers']} callers" for each in results])
    axes.invert_yaxis()
    axes.set_xlabel("CPU ms per request")
    axes.set_title("CPU time by process")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
