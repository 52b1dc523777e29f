"""The plot of an `offline-kernels` run, from its JSON alone.

On the left a roofline: how many multiplications a forward pass does for a byte that it must read, and at which rate; a
point below its GPU's roof wastes that GPU. On the right why: the least time by bytes, by arithmetic and by launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import AMBER, BLUE, GREEN, GREY, PURPLE, RED, TEAL, title

Result = Mapping[str, Any]

WIDTH_INCHES, ROOF_INCHES, BAR_INCHES = 13.0, 5.0, 0.16
_GPU_COLOURS = (BLUE, TEAL, PURPLE, AMBER)
_FLOORS = {"bytes": BLUE, "arithmetic": GREEN, "launches": AMBER}
_MARKERS = "osD^vPX*"


def draw_kernels(run: Mapping[str, Any]) -> Figure:
    """A roofline of every GPU, and the least times of every result on every GPU."""
    results: Sequence[Result] = run["results"]
    num_bars = sum((len(_FLOORS) + 1) * len(result["times_ms"]) for result in results)
    figure = Figure(figsize=(WIDTH_INCHES, max(ROOF_INCHES, BAR_INCHES * num_bars + 1)), layout="constrained")
    roof, bars = figure.subplots(1, 2, width_ratios=[1, 1.2])
    _draw_roofline(roof, run["gpus"], results)
    _draw_floors(bars, results)
    figure.suptitle(
        title(run, "Kernels of one forward pass, counted on a pretend GPU; times by assumption, not measured").replace(
            "measured on", "counted on"
        )
    )
    return figure


def name_of(result: Result) -> str:
    """Architecture, size and format in one line."""
    rows = "1 row" if result["rows"] == 1 else f"{result['rows']} rows"
    return f"{result['arch']}, {result['context_rows']:,} context rows, {result['precision']}, {rows}"


def _draw_roofline(axes: Axes, gpus: Mapping[str, Any], results: Sequence[Result]) -> None:
    """The rate is multiplications by estimated time; the intensity is multiplications by held bytes."""
    intensities = np.geomspace(1, 1e4, 50)
    shown = {gpu for result in results for gpu in result["times_ms"]}
    colours = dict(zip(gpus, _GPU_COLOURS, strict=False))
    is_single = all(result["precision"] == "float32" for result in results)
    for gpu in (gpu for gpu in gpus if gpu in shown):
        peak = gpus[gpu]["single_tflops" if is_single else "half_tflops"]
        attainable = np.minimum(intensities * gpus[gpu]["gb_per_s"] / 1e3, peak)
        axes.plot(intensities, attainable, color=colours[gpu], label=f"{gpu}: attainable")
    for marker, result in zip(_MARKERS * len(results), results, strict=False):
        for gpu, times in result["times_ms"].items():
            rate = result["flops"] / times["estimate"] / 1e9
            axes.plot(result["flops"] / result["held_bytes"], rate, marker, color=colours[gpu], markersize=7)
        axes.plot([], [], marker, color=GREY, label=name_of(result))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("floating-point operations for each byte of weights and caches")
    axes.set_ylabel("Tflop/s")
    axes.set_title("roofline" + ("" if is_single else " (roofs in 16 bit)"), loc="left")
    axes.grid(alpha=0.3)
    _legend_below(axes)


def _draw_floors(axes: Axes, results: Sequence[Result]) -> None:
    """For each result and GPU a bar for each least time, and a mark at the estimate."""
    places, labels, place = [], [], 0.0
    for result in results:
        for gpu, times in result["times_ms"].items():
            for offset, (floor, colour) in enumerate(_FLOORS.items()):
                axes.barh(place + offset, max(times[floor], 1e-4), color=colour, height=1)
            axes.plot([times["estimate"]] * 2, [place - 0.5, place + len(_FLOORS) - 0.5], color=RED, linewidth=2)
            places.append(place + 1)
            labels.append(f"{name_of(result)}, {gpu}")
            place += len(_FLOORS) + 1
    for floor, colour in _FLOORS.items():
        axes.barh([0], [0], color=colour, label=f"least time by {floor}")
    axes.plot([], [], color=RED, label="estimate: each kernel as long as its slowest part")
    axes.set_yticks(places, labels, fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=1e-3)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("milliseconds of one forward pass")
    axes.set_title("where the time goes", loc="left")
    axes.grid(alpha=0.3, axis="x")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    height = axes.get_figure(root=True).get_size_inches()[1]  # type: ignore[union-attr]
    axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.7 / height), ncols=2)
