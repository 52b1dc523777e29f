"""Shared drawing code of all plots: colours, sizes, axes, titles. This module imports no benchmark.

The plots of one benchmark stand beside it (`offline/plot.py`, `online/plots.py`, ...). Each draws a `Figure` from the
run's JSON alone. `benchmarks.report` chooses the plot by the run's kind and writes the PNG.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.machine import describe

BLUE, TEAL, PURPLE, GREEN = "#2f6db3", "#4aa3a2", "#7a5fb5", "#1f9d55"
AMBER, RED, GREY = "#d98e04", "#b3372f", "#777777"
COMPILED, TABPFN = BLUE, AMBER
"""Colours of the two backends, the same in every plot."""
DPI = 110


def title(run: Mapping[str, Any], subject: str) -> str:
    """`subject`, and below it the machine, the date and the commit of the run."""
    commit = (run["commit"] or "no commit")[:10] + (" with uncommitted changes" if run["dirty"] else "")
    return f"{subject}\nmeasured on {describe(run['machine'])}, {run['started_at'][:10]}, commit {commit}"


def plain_log(axes: Axes) -> None:
    """A logarithmic y axis with ticks at 1, 2 and 5, written without exponents."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def finish(axes: Axes) -> None:
    """Grid and legend."""
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def save(figure: Figure, path: Path, digest: str = "") -> None:
    """Write the PNG. `digest` names the JSON that the figure was drawn from, so that a test can compare the two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Description": digest} if digest else None)
