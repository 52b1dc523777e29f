"""Draws the plot of a run from its JSON: `python -m benchmarks.report FILE.json FILE.png`.

Every run states its `kind`, and every kind that can be drawn has one function in `PLOTS`. Imports go one way: this
module imports the plots, the plots import `benchmarks.figures`, and no benchmark imports a plot before it has measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import figures
from benchmarks.command_line import command_parser, read_run
from benchmarks.offline.kernels_plot import draw_kernels
from benchmarks.offline.plot import draw_engine
from benchmarks.online.gpu_like_plot import draw_gpu_like
from benchmarks.online.load_plot import draw_load
from benchmarks.online.mixed_plot import draw_mixed
from benchmarks.online.mlperf_plot import draw_mlperf
from benchmarks.online.overhead_plot import draw_overhead
from benchmarks.online.search_plot import draw_search
from benchmarks.peers.plot import draw_peers
from benchmarks.simulation.plot import draw_simulation

PLOTS: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = {
    "offline-engine": draw_engine,
    "offline-kernels": draw_kernels,
    "online-load": draw_load,
    "online-search": draw_search,
    "online-mixed": draw_mixed,
    "online-overhead": draw_overhead,
    "online-gpu-like": draw_gpu_like,
    "online-mlperf": draw_mlperf,
    "online-peers": draw_peers,
    "simulation": draw_simulation,
}
"""The plot of each kind of run."""


def plot(run: Mapping[str, Any], path: Path) -> None:
    """Draw a run as PNG. Raises ValueError for a kind that has no plot."""
    draw = PLOTS.get(run["kind"])
    if draw is None:
        raise ValueError(f"no plot for a run of kind {run['kind']!r}; these can be drawn: {', '.join(PLOTS)}")
    figures.save(draw(run), path, digest(run))


def digest(run: Mapping[str, Any]) -> str:
    """Names the content of a run's JSON, whatever its layout."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw one run; ends with exit status 2 and one line if it cannot be drawn."""
    parser = command_parser("benchmarks.report", "Draw the plot of a benchmark run from its JSON.")
    parser.add_argument("json", type=Path, metavar="FILE.json", help="the run")
    parser.add_argument("png", type=Path, metavar="FILE.png", help="the plot to write")
    given = parser.parse_args(arguments)
    try:
        plot(read_run(given.json), given.png)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
