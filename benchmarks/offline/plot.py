"""The plot of an `offline-engine` run, from its JSON alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures import COMPILED, GREEN, GREY, PURPLE, RED, TABPFN, TEAL, plain_log, title

Result = Mapping[str, Any]
LineStyle = Literal["-", "--", "-.", ":"]

SIZE_INCHES = (12.5, 4.2)
"""Of the row of panels of one architecture."""
_COMPILED_COLOURS = (COMPILED, TEAL, PURPLE, GREEN)
"""One for each way in which the server's engine ran, in the order of the results."""
_STYLES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
_NAMES = {"demo": "demo model", "v2": "TabPFN v2", "v2_5": "TabPFN v2.5", "v2_6": "TabPFN v2.6",
          "v3": "TabPFN v3", "v3_5": "TabPFN v3.5"}  # fmt: skip


def draw_engine(run: Mapping[str, Any]) -> Figure:
    """A row of panels for each architecture: milliseconds per predict, and how many times faster `compiled` is."""
    by_arch = _grouped(run["results"], lambda result: str(result.get("arch", result["case"])))
    width, height = SIZE_INCHES
    figure = Figure(figsize=(width, height * len(by_arch)), layout="constrained")
    panels = figure.subplots(len(by_arch), 2, squeeze=False, width_ratios=[1.5, 1])
    for (time, ratio), (arch, results) in zip(panels, by_arch.items(), strict=True):
        _draw_predicts(time, ratio, results)
        time.set_title(f"{_NAMES.get(arch, arch)}: time of one predict call (median)", loc="left")
        time.set_ylabel("milliseconds")
        ratio.set_title("compiled: times faster than tabpfn", loc="left")
    figure.suptitle(title(run, "One predict call: the compiled backend and the tabpfn package, timed in pairs"))
    return figure


def _draw_predicts(time: Axes, ratio: Axes, results: Sequence[Result]) -> None:
    """Colours show which backend answers, line styles show the context."""
    by_way = _grouped(results, _way)
    colours = dict(zip(by_way, itertools.cycle(_COMPILED_COLOURS)))
    by_case = _grouped(results, _context)
    styles = dict(zip(by_case, itertools.cycle(_STYLES)))
    for case, of_case in by_case.items():
        ways = _grouped(of_case, _way)
        for way, points in ways.items():
            _curve(time, points, "compiled_ms", colours[way], styles[case])
            _curve(ratio, points, "speedup", colours[way], styles[case])
            _curve(ratio, points, "speedup_uncached", RED, styles[case])
        # tabpfn is timed beside every way of compiled; one of these series is enough
        beside = next(iter(ways.values()))
        _curve(time, beside, "tabpfn_ms", TABPFN, styles[case])
        _curve(time, beside, "uncached_ms", RED, styles[case])
    ratio.axhline(1, color=GREY, linestyle=":")
    _label_rows(time, ratio, sorted({result["rows"] for result in results}))
    has_uncached = any(result.get("uncached_ms") for result in results)
    key = _legend(colours, styles, has_uncached)
    ratio.legend(handles=key, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize="small", frameon=False)


def _legend(colours: Mapping[str, str], styles: Mapping[str, LineStyle], has_uncached: bool) -> list[Line2D]:
    named = {**colours, "tabpfn, KV cache, its own precision": TABPFN}
    if has_uncached:
        named["tabpfn without KV cache"] = RED
    key = [Line2D([], [], marker="o", color=colour, label=name) for name, colour in named.items()]
    return key + [Line2D([], [], linestyle=style, color=GREY, label=case) for case, style in styles.items()]


def _label_rows(time: Axes, ratio: Axes, rows: Sequence[int]) -> None:
    for axes in (time, ratio):
        axes.set_xscale("log")
        plain_log(axes)
        axes.set_xticks(rows, [str(num_rows) for num_rows in rows])
        axes.xaxis.minorticks_off()
        axes.set_xlabel("query rows in one predict call")
        axes.grid(alpha=0.3)


def _way(result: Result) -> str:
    """Backend, precision and device of the server's engine."""
    backend, precision = result.get("backend", "compiled"), result.get("precision", "float32")
    return f"{backend}, {precision}, {str(result.get('device', 'cpu')).upper()}"


def _context(result: Result) -> str:
    """Size of the context, or the case's name in a run that does not state the size."""
    if "context_rows" not in result:
        return str(result["case"])
    size = f"{result['context_rows']:,} rows x {result['features']} columns"
    return f"context of {size},\n{result['members']} ensemble members"


def _curve(axes: Axes, results: Sequence[Result], key: str, colour: str, style: str) -> None:
    """Of the results that have a value; no line where none has."""
    known = sorted((each["rows"], each[key]) for each in results if each.get(key) is not None)
    if known:
        axes.plot(*zip(*known, strict=True), marker="o", linestyle=style, color=colour)


def _grouped(results: Sequence[Result], name: Callable[[Result], str]) -> dict[str, list[Result]]:
    """Results by name, in the order in which the names occur."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(name(result), []).append(result)
    return groups
