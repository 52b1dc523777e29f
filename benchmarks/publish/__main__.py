"""Publish benchmark runs: copy chosen JSON from benchmarks/out, redraw all plots, write all pages.

Without a name, only plots and pages are written, from the JSON that is published already.

examples:
  python -m benchmarks.publish                              # plots and pages
  python -m benchmarks.publish offline-engine online-load   # publish these two runs first
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.command_line import command_parser, read_run
from benchmarks.publish.catalogue import NAMES, OUT, RESULTS, kind_of, read_all
from benchmarks.publish.markdown import Run
from benchmarks.publish.pages import PAGE, render_page
from benchmarks.publish.readme import README, render_table, replace_table
from benchmarks.report import PLOTS, plot


def publish(names: Sequence[str], source: Path = OUT, target: Path = RESULTS) -> None:
    """Copy the named runs. Raises ValueError, and copies none, if one is absent or of another kind."""
    for name in names:
        if not (source / f"{name}.json").is_file():
            raise ValueError(f"there is no {source / name}.json: measure it first, by its command in {PAGE}")
        run = read_run(source / f"{name}.json")
        if run["kind"] != kind_of(name):
            raise ValueError(f"{source / name}.json is a run of kind {run['kind']!r}; {name} needs {kind_of(name)!r}")
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / f"{name}.json", target / f"{name}.json")


def draw_plots(runs: Mapping[str, Run], target: Path = RESULTS) -> None:
    """The plot of every run whose kind has one."""
    for name, run in runs.items():
        if run["kind"] in PLOTS:
            plot(run, target / f"{name}.png")


def write_pages(runs: Mapping[str, Run]) -> None:
    """benchmarks/RESULTS.md, and the table in README.md."""
    PAGE.write_text(render_page(runs), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(replace_table(readme, render_table(runs)), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish the named runs, then write all plots and pages; the exit status."""
    parser = command_parser("benchmarks.publish", __doc__)
    names = f"runs to publish from --source: {', '.join(NAMES)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--source", type=Path, default=OUT, metavar="FOLDER", help="folder of the new JSON")
    given: argparse.Namespace = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no run is published as {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    try:
        publish(given.names, given.source)
        runs = read_all()
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    draw_plots(runs)
    write_pages(runs)
    print(f"published {', '.join(given.names) or 'no new run'}; plots and pages are written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
