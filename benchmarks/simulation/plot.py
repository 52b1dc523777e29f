"""The plot of a `simulation` run, from its JSON alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from benchmarks.figures import AMBER, BLUE, GREY, RED, plain_log, title
from benchmarks.simulation.summary import bulk_points

Result = Mapping[str, Any]
Value = Callable[[Result], float | None]

SIZE_INCHES = (17.0, 18.5)
_GREEN = "#4f8f2f"
TABPFN_SERVE = "tabpfn-serve"
STYLES: dict[str, dict[str, Any]] = {
    TABPFN_SERVE: {"color": BLUE, "linewidth": 3.0, "marker": "o", "zorder": 5},
    "Triton, tuned": {"color": _GREEN, "marker": "s"},
    "Triton": {"color": _GREEN, "linestyle": "--"},
    "BentoML, tuned": {"color": AMBER, "marker": "^"},
    "BentoML": {"color": AMBER, "linestyle": "--"},
    "Ray, tuned": {"color": RED, "marker": "D"},
    "Ray @serve.batch": {"color": RED, "linestyle": "--"},
    "Ray, all defaults": {"color": RED, "linestyle": ":"},
    "no batching": {"color": GREY, "linestyle": "-."},
}
"""By policy. Solid lines: tuned; broken lines: default settings."""
ROUTER_COLOURS = {"random": GREY, "round robin": _GREEN, "least outstanding": BLUE, "power of two": RED}


def draw_simulation(run: Mapping[str, Any]) -> Figure:
    """Twelve panels; those of an experiment that was not run are empty."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    panels = figure.subplots(4, 3).flatten()
    results, devices = run["results"], run["config"]["devices"]
    _draw_loads(panels[:6], results, devices)
    _draw_contexts(panels[6], panels[7], results)
    _draw_bulk(panels[8], results, devices)
    _draw_replicas(panels[9], panels[10], results)
    _draw_routed_contexts(panels[11], results)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    subject = (
        "Batching policies in simulation: same arrivals, same device; a virtual clock, no real server\n"
        "solid lines: settings tuned for the device; broken lines: default settings (tabpfn-serve: defaults)"
    )
    figure.suptitle(title(run, subject).replace("measured on", "simulated on"))
    return figure


def _draw_loads(panels: Sequence[Axes], results: Sequence[Result], devices: Mapping[str, Any]) -> None:
    """Three loads: p99 above, share answered in time below."""
    columns = (
        ("Simulated GPU, 1-100 rows, Poisson", "gpu", "1-100 rows", "poisson"),
        ("Simulated GPU, 1-100 rows, bursts", "gpu", "1-100 rows", "bursty"),
        ("Simulated CPU, interactive beside 2 % bulk", "cpu-demo", "mixed", "poisson"),
    )
    for above, below, (name, *wanted) in zip(panels[:3], panels[3:], columns, strict=True):
        chosen = [r for r in results if [r["experiment"], r["device"], r["mix"], r["arrivals"]] == ["load", *wanted]]
        _lines(above, chosen, "load", lambda r: r["interactive"]["p99_ms"])
        if chosen:
            deadline_ms = 1e3 * devices[chosen[0]["device"]]["deadline_s"]
            above.axhline(deadline_ms, color="black", linewidth=0.8, linestyle=":")
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
            above.text(0.1, deadline_ms * 1.15, f"deadline {deadline_ms:g} ms", fontsize="small", bbox=box)
        _log_ms(above)
        above.set_title(f"{name}: p99", loc="left")
        _lines(below, chosen, "load", lambda r: r["interactive"]["goodput_share"])
        if wanted[1] != "mixed":
            loads = sorted({r["load"] for r in chosen})
            below.plot(loads, [min(1.0, 1 / load) for load in loads], color="black", linewidth=0.8, linestyle=":")
        _share(below)
        below.set_title("same load: answered within the deadline", loc="left")
        for axes in (above, below):
            axes.set_xlabel("offered rows, as a share of the device's capacity in full batches")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_contexts(share: Axes, fairness: Axes, results: Sequence[Result]) -> None:
    chosen = [r for r in results if r["experiment"] == "contexts" and r["device"] == "gpu"]
    _lines(share, chosen, "num_contexts", lambda r: r["goodput_share"])
    share.set_title("Simulated GPU, one-row requests to many contexts: answered in time", loc="left", fontsize="medium")
    _lines(fairness, chosen, "num_contexts", lambda r: (r.get("fairness") or {"jain_latency": 1.0})["jain_latency"])
    fairness.set_title("same load: fairness between contexts", loc="left")
    for axes in (share, fairness):
        axes.set_xscale("log")
        numbers = sorted({r["num_contexts"] for r in chosen})
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("contexts (Zipf popularity), at 1.2 times the rate without batching")
    _share(share)
    fairness.set_ylabel("Jain's index of the contexts' mean latency (1: equal)")
    fairness.grid(alpha=0.3)


def _draw_bulk(axes: Axes, results: Sequence[Result], devices: Mapping[str, Any]) -> None:
    """Bulk rows answered, and their effect on interactive requests. The goal is the lower right corner."""
    for (device, policy), (share, ratio) in bulk_points(results, devices).items():
        axes.plot(
            share,
            ratio,
            linestyle="",
            marker="o" if device == "gpu" else "s",
            markersize=11,
            color=STYLES[policy]["color"],
            fillstyle="full" if policy == TABPFN_SERVE or "tuned" in policy else "none",
        )
    axes.axhline(2, color="black", linewidth=0.8, linestyle=":")
    axes.axvline(0.8, color="black", linewidth=0.8, linestyle=":")
    axes.text(0.98, 0.02, "goal: lower right", ha="right", transform=axes.transAxes, fontsize="small")
    note = "round: GPU, square: CPU\nfilled: tuned, hollow: default settings"
    axes.text(0.98, 0.98, note, ha="right", va="top", transform=axes.transAxes, fontsize="small")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.set_xlabel("bulk rows answered, as a share of the free capacity")
    axes.set_ylabel("interactive p99 with bulk / without bulk")
    axes.set_title("Interactive requests at 40 % load beside constant bulk", loc="left")
    axes.grid(alpha=0.3)


def _draw_replicas(p99: Axes, share: Axes, results: Sequence[Result]) -> None:
    chosen = [r for r in results if r["experiment"] == "replicas"]
    alone = [r for r in chosen if r["num_replicas"] == 1]
    for router, stale_s in dict.fromkeys((r["router"], r["stale_s"]) for r in chosen if r["num_replicas"] > 1):
        line = alone + [r for r in chosen if (r["router"], r["stale_s"]) == (router, stale_s) and r["num_replicas"] > 1]
        label = router + (f", numbers up to {1e3 * stale_s:g} ms old" if stale_s else "")
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
        axes.set_xlabel("tabpfn-serve replicas, each at 80 % load")
    p99.set_title("Replicas behind a router (GPU, 1-100 rows): p99", loc="left")
    share.set_title("same load: answered within the deadline", loc="left")
    if chosen:
        share.legend(fontsize="small", loc="lower left")


def _draw_routed_contexts(axes: Axes, results: Sequence[Result]) -> None:
    chosen = [r for r in results if r["experiment"] == "replicas and contexts"]
    bars = axes.barh([r["router"] for r in chosen], [r["goodput_share"] for r in chosen], color="#8fb0da")
    labels = [f"{r['goodput_share']:.1%}, p99 {r['latency']['p99_ms']:.0f} ms" for r in chosen]
    axes.bar_label(bars, labels, label_type="center")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("answered within the deadline")
    axes.set_title("500 contexts on 8 replicas (GPU), by router", loc="left")


def _lines(axes: Axes, results: Sequence[Result], x: str, value: Value) -> None:
    for policy, style in STYLES.items():
        points = sorted((r[x], y) for r in results if r["policy"] == policy and (y := value(r)) is not None)
        if points:
            axes.plot(*zip(*points, strict=True), label=policy, **{"linewidth": 1.6, "markersize": 5, **style})


def _log_ms(axes: Axes) -> None:
    plain_log(axes)
    axes.set_ylabel("latency, ms")
    axes.grid(alpha=0.3)


def _share(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("share of requests")
    axes.grid(alpha=0.3)
