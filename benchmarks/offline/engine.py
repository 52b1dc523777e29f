"""Compare the server's engine with the tabpfn package, one predict call at a time.

No server and no queue: both sides run in this process, hold the same context and checkpoint, and get the same encoded
rows. `compiled` is the engine as it serves, with rows padded to their row bucket. `tabpfn` is the package's own predict
with a KV cache (fit_mode="fit_with_cache"), in the precision that it picks itself. Options that take several values are
the axes of a grid; every point of the grid is a cell.

examples:
  python -m benchmarks.offline.engine --precision float32 auto --threads 2
  python -m benchmarks.offline.engine --arch v2 --rows 1 --device cuda:0 --json run.json --plot run.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import add_outputs, check_outputs, command_parser, positive, write_outputs
from benchmarks.machine import write_json
from benchmarks.offline.architectures import ARCHITECTURES
from benchmarks.offline.grid import DEMO, EngineOptions, run_engine
from serve.core.errors import ServeError

PRECISIONS = ("float32", "bfloat16", "float16", "auto")
BACKENDS = ("compiled", "tabpfn")
TABLE = (
    "case", "device", "precision", "backend", "rows", "compiled_ms", "tabpfn_ms", "speedup", "max_abs_diff",
    "tabpfn_abs_diff", "uncached_ms", "speedup_uncached",
)  # fmt: skip


def table(run: Mapping[str, Any]) -> str:
    """One line per cell; columns that no cell has are left out."""
    names = [name for name in TABLE if any(name in result for result in run["results"])]
    rows = [names, *([_cell(result.get(name)) for name in names] for result in run["results"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def parser() -> argparse.ArgumentParser:
    """The options by topic; a default that is a tuple makes an option that takes several values."""
    made = command_parser("benchmarks.offline.engine", __doc__)
    default = EngineOptions()

    def add(group: Any, name: str, help: str, **more: Any) -> None:
        value = getattr(default, name)
        several = isinstance(value, tuple)
        kind = type(value[0]) if several else type(value)
        common: dict[str, Any] = {"type": positive if kind is int else kind, "metavar": "NAME" if kind is str else "N"}
        if several:
            common["nargs"] = "+"
        if "choices" in more:
            help = f"{help}; one of {', '.join(more['choices'])}"
        group.add_argument("--" + name.replace("_", "-"), default=value, help=help, **{**common, **more})

    axes = made.add_argument_group("axes of the grid (several values each)")
    archs = f"{DEMO} (a model of the repository), or a TabPFN architecture at full size with random weights"
    add(axes, "arch", archs, choices=[DEMO, *ARCHITECTURES])
    add(axes, "context_rows", f"labelled rows of the synthetic contexts; {DEMO} has its own")
    add(axes, "features", "columns of the synthetic contexts")
    add(axes, "members", "ensemble members on the synthetic contexts")
    add(axes, "rows", "query rows of one predict call")
    add(axes, "device", "cpu or cuda:N, for both sides")
    add(axes, "precision", "of the server's engine; the tabpfn side picks its own", choices=PRECISIONS)
    add(axes, "backend", "of the server's engine, in the place of compiled", choices=BACKENDS)
    one = made.add_argument_group("the same for all cells")
    add(one, "model", f"name in the repository, for {DEMO}")
    add(one, "repository", "folder of models; without it, the models inside the package", type=str, metavar="FOLDER")
    add(one, "pairs", "rounds against tabpfn with its KV cache")
    add(one, "uncached_pairs", f"rounds against tabpfn without its KV cache, which is slow; {DEMO} only")
    add(one, "warmups", "rounds before, which are not counted", type=int)
    add(one, "cell_seconds", "time for one cell: a slow cell runs fewer pairs, at least three")
    add(one, "threads", "threads of torch, for both sides")
    add(one, "seed", "of weights, contexts and query rows", type=int)
    add_outputs(made, "after every cell")
    return made


def parse(arguments: Sequence[str] | None) -> tuple[EngineOptions, Path | None, Path | None]:
    """The run's options, and the files for its JSON and its plot."""
    made = parser()
    given: dict[str, Any] = vars(made.parse_args(arguments))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    to_json, to_plot = given.pop("json"), given.pop("plot")
    check_outputs(made, to_json, to_plot)
    return EngineOptions(**given), to_json, to_plot


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the grid and print its table; the exit status."""
    options, to_json, to_plot = parse(arguments)
    try:
        run = run_engine(options, on_result=(lambda run: write_json(run, to_json)) if to_json else None)
    except (ServeError, ValueError) as error:
        print(f"python -m benchmarks.offline.engine: {error}", file=sys.stderr)
        return 2
    write_outputs(run, None, to_plot)  # the JSON was written after every cell
    print(table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
