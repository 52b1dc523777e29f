"""benchmarks/RESULTS.md: all sections, and links to them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.machine import ROOT
from benchmarks.publish.catalogue import SECTIONS, Section
from benchmarks.publish.markdown import Run, paragraph
from benchmarks.report import PLOTS

PAGE = ROOT / "benchmarks" / "RESULTS.md"

_HEAD = paragraph(
    "This page is written by `make results` from the JSON in [results/](results): do not edit it. Each section states "
    "the machine, the date, the commit and the command of its run; [README.md](README.md) explains the commands. "
    "Figures of different sections come from different runs, and one machine is not another."
)


def render_page(runs: Mapping[str, Run]) -> str:
    """The page of all published runs."""
    contents = "".join(f"- [{each.title}](#{anchor(each.title)})\n" for each in SECTIONS)
    gpu = "" if any(run["machine"]["gpus"] for run in runs.values()) else "**No run used a GPU.**\n\n"
    sections = [_section(each, runs) for each in SECTIONS]
    return "\n".join([f"# Results\n\n{_HEAD}\n{gpu}{contents}", *sections])


def _section(section: Section, runs: Mapping[str, Run]) -> str:
    reading = f"\n{paragraph(section.reading)}" if section.reading else ""
    plots = "".join(f"![plot of {name}](results/{name}.png)\n\n" for name in section.names if section.kind in PLOTS)
    return f"## {section.title}\n\n{paragraph(section.question)}{reading}\n{plots}{section.write(runs)}"


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def link(text: str, name: str) -> str:
    """A link from README.md to the section of the named run."""
    title = next(each.title for each in SECTIONS if name in each.names)
    return f"[{text}](benchmarks/RESULTS.md#{anchor(title)})"
