"""A run's JSON -> its plot: `python -m benchmarks.offline.simulation.plot FILE.json FILE.png` draws one again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from benchmarks.machine import describe
from benchmarks.offline.simulation.contenders import OURS

Result = Mapping[str, Any]
Value = Callable[[Result], float | None]

SIZE_INCHES = (17.0, 18.5)
DPI = 100
OURS_NAME = OURS.name
STYLES: dict[str, dict[str, Any]] = {
    OURS_NAME: {"color": "#1f5fb4", "linewidth": 3.0, "marker": "o", "zorder": 5},
    "Triton, tuned": {"color": "#4f8f2f", "marker": "s"},
    "Triton": {"color": "#4f8f2f", "linestyle": "--"},
    "BentoML, tuned": {"color": "#d98e04", "marker": "^"},
    "BentoML": {"color": "#d98e04", "linestyle": "--"},
    "Ray, tuned": {"color": "#b3372f", "marker": "D"},
    "Ray @serve.batch": {"color": "#b3372f", "linestyle": "--"},
    "Ray, all defaults": {"color": "#b3372f", "linestyle": ":"},
    "no batching": {"color": "#777777", "linestyle": "-."},
}
ROUTER_COLOURS = {
    "random": "#777777", "round robin": "#4f8f2f", "least outstanding": "#1f5fb4", "power of two": "#b3372f"
}  # fmt: skip


def plot(run: Mapping[str, Any], path: Path) -> None:
    """Draw a run as PNG. An experiment that was not run leaves its panels empty."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    panels = figure.subplots(4, 3).flatten()
    results, devices = run["results"], run["config"]["devices"]
    _draw_loads(panels, results, devices)
    _draw_contexts(panels[6], panels[7], results)
    _draw_bulk(panels[8], results, devices)
    _draw_replicas(panels[9], panels[10], results)
    _draw_routed_contexts(panels[11], results)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    commit = (run["commit"] or "no commit")[:10] + (" + changes" if run["dirty"] else "")
    figure.suptitle(
        "batching policies under a virtual clock: same arrivals, same device (solid: tuned, broken: as it comes)\n"
        f"simulated on {describe(run['machine'])}; {run['started_at'][:10]}, {commit}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def _draw_loads(panels: Sequence[Axes], results: Sequence[Result], devices: Mapping[str, Any]) -> None:
    def of(device: str, mix: str, arrivals: str = "poisson") -> list[Result]:
        wanted = ("load", device, mix, arrivals)
        return [r for r in results if (r["experiment"], r["device"], r["mix"], r["arrivals"]) == wanted]

    gpu, bursty, cpu = of("gpu", "1-100 rows"), of("gpu", "1-100 rows", "bursty"), of("cpu-demo", "mixed")
    for axes, title, chosen in (
        (panels[0], "GPU, 1-100 rows, Poisson: p99", gpu),
        (panels[1], "GPU, 1-100 rows, bursty: p99", bursty),
        (panels[2], "CPU demo, mixed with 2 % bulk: interactive p99", cpu),
    ):
        _lines(axes, chosen, "load", lambda r: r["interactive"]["p99_ms"])
        if chosen:
            deadline_ms = 1e3 * devices[chosen[0]["device"]]["deadline_s"]
            axes.axhline(deadline_ms, color="black", linewidth=0.8, linestyle=":")
            axes.text(0.1, deadline_ms * 1.15, f"deadline {deadline_ms:g} ms", fontsize="small")
        _log_ms(axes)
        axes.set_title(title, loc="left")
    for axes, title, chosen in (
        (panels[3], "the same: answered within the deadline", gpu),
        (panels[4], "the same: answered within the deadline", bursty),
        (panels[5], "the same: interactive answered within the deadline", cpu),
    ):
        _lines(axes, chosen, "load", lambda r: r["interactive"]["goodput_share"])
        loads = sorted({r["load"] for r in chosen})
        if axes is not panels[5]:
            axes.plot(loads, [min(1.0, 1 / load) for load in loads], color="black", linewidth=0.8, linestyle=":")
        _share(axes)
        axes.set_title(title, loc="left")
    for axes in panels[:6]:
        axes.set_xlabel("offered rows, of what full batches could answer")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_contexts(share: Axes, fairness: Axes, results: Sequence[Result]) -> None:
    chosen = [r for r in results if r["experiment"] == "contexts" and r["device"] == "gpu"]
    _lines(share, chosen, "num_contexts", lambda r: r["goodput_share"])
    share.set_title("GPU, 1 row, 1.2x the unbatched rate: in time", loc="left")
    _lines(fairness, chosen, "num_contexts", lambda r: (r.get("fairness") or {"jain_latency": 1.0})["jain_latency"])
    fairness.set_title("the same: Jain's index of the contexts' mean latency", loc="left")
    for axes in (share, fairness):
        axes.set_xscale("log")
        numbers = sorted({r["num_contexts"] for r in chosen})
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("contexts (Zipf popularity)")
    _share(share)
    fairness.grid(alpha=0.3)


def _draw_bulk(axes: Axes, results: Sequence[Result], devices: Mapping[str, Any]) -> None:
    """How much bulk goes through, and what it does to the others. The goal is the lower right corner."""
    chosen = [r for r in results if r["experiment"] == "bulk"]
    by = {(r["device"], r["policy"], r["load"] is None, r["num_bulk_clients"] > 0): r for r in chosen}
    for (device, policy, is_alone, has_bulk), result in by.items():
        if is_alone or not has_bulk:
            continue
        before = by[device, policy, False, False]["interactive"]["p99_ms"]
        ratio = result["interactive"]["p99_ms"] / before
        room = devices[device]["capacity_rows_per_s"] * (1 - result["load"])
        axes.plot(
            result["bulk_clients"]["rows_per_s"] / room,
            ratio,
            linestyle="",
            marker="o" if device == "gpu" else "s",
            markersize=11,
            color=STYLES[policy]["color"],
            fillstyle="full" if policy == OURS_NAME or "tuned" in policy else "none",
        )
    axes.axhline(2, color="black", linewidth=0.8, linestyle=":")
    axes.axvline(0.8, color="black", linewidth=0.8, linestyle=":")
    axes.text(0.98, 0.02, "goal: lower right", ha="right", transform=axes.transAxes, fontsize="small")
    note = "round: GPU, square: CPU demo\nfilled: tuned, hollow: as it comes"
    axes.text(0.98, 0.98, note, ha="right", va="top", transform=axes.transAxes, fontsize="small")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.set_xlabel("bulk rows answered, of the room that interactive leaves")
    axes.set_ylabel("interactive p99 with bulk / without")
    axes.set_title("40 % interactive beside endless bulk", loc="left")
    axes.grid(alpha=0.3)


def _draw_replicas(p99: Axes, share: Axes, results: Sequence[Result]) -> None:
    chosen = [r for r in results if r["experiment"] == "replicas"]
    alone = [r for r in chosen if r["num_replicas"] == 1]
    for router, stale_s in dict.fromkeys((r["router"], r["stale_s"]) for r in chosen if r["num_replicas"] > 1):
        line = alone + [r for r in chosen if (r["router"], r["stale_s"]) == (router, stale_s) and r["num_replicas"] > 1]
        label = router + (f", {1e3 * stale_s:g} ms stale" if stale_s else "")
        style = {0.0: "-", 0.02: "--"}.get(stale_s, ":")
        common: dict[str, Any] = {"color": ROUTER_COLOURS[router], "linestyle": style, "marker": "o", "label": label}
        numbers = [r["num_replicas"] for r in line]
        p99.plot(numbers, [r["latency"]["p99_ms"] for r in line], **common)
        share.plot(numbers, [r["goodput_share"] for r in line], **common)
    _log_ms(p99)
    _share(share)
    for axes in (p99, share):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("replicas, each at 80 % load")
    p99.set_title("replicas behind a router (GPU, 1-100 rows): p99", loc="left")
    share.set_title("the same: answered within the deadline", loc="left")
    if chosen:
        share.legend(fontsize="small", loc="lower left")


def _draw_routed_contexts(axes: Axes, results: Sequence[Result]) -> None:
    chosen = [r for r in results if r["experiment"] == "replicas and contexts"]
    names = [r["router"] for r in chosen]
    bars = axes.barh(names, [r["goodput_share"] for r in chosen], color="#8fb0da")
    labels = [f"{r['goodput_share']:.1%}, p99 {r['latency']['p99_ms']:.0f} ms" for r in chosen]
    axes.bar_label(bars, labels, label_type="center")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("500 contexts on 8 replicas: answered in time", loc="left")


def _lines(axes: Axes, results: Sequence[Result], x: str, value: Value) -> None:
    for policy, style in STYLES.items():
        points = sorted((r[x], y) for r in results if r["policy"] == policy and (y := value(r)) is not None)
        if points:
            axes.plot(*zip(*points, strict=True), label=policy, **{"linewidth": 1.6, "markersize": 5, **style})


def _log_ms(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3)


def _share(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline.simulation.plot", description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path)
    given = parser.parse_args(arguments)
    plot(json.loads(given.json.read_text(encoding="utf-8")), given.png)


if __name__ == "__main__":
    main()
