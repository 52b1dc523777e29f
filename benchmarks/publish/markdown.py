"""Markdown of the pages: tables, numbers with units, and where a run was made."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]
"""One run's JSON; see `benchmarks.machine.envelope`."""

NONE = "-"
"""A cell without a value."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def paragraph(text: str) -> str:
    """Text in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def ms(value: float | None) -> str:
    """Milliseconds: one decimal below 100, none above."""
    if value is None:
        return NONE
    return f"{value:.1f}" if abs(value) < 99.95 else f"{value:,.0f}"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NONE if value is None else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    """A ratio: `6.7x`."""
    if ratio is None:
        return NONE
    return f"{ratio:.1f}x" if ratio < 99.95 else f"{ratio:,.0f}x"


def percent(share: float | None, decimals: int = 0) -> str:
    """A share of 1 in percent."""
    return NONE if share is None else f"{100 * share:.{decimals}f} %"


def difference(value: float | None) -> str:
    """A difference of outputs: `2e-07`; 0 if the outputs are equal."""
    return NONE if value is None else f"{value:.0e}" if value else "0"


def megabytes(num_bytes: float | None) -> str:
    """Bytes in MB (10^6), one decimal."""
    return NONE if num_bytes is None else f"{num_bytes / 1e6:,.1f}"


def between(values: Sequence[float], text: Any = ms) -> str:
    """`40.2 to 47.1`, or one number if both ends read the same."""
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def percentile(latency: Mapping[str, Any], percent_: int) -> str:
    """A percentile in ms; `~` marks one with too few requests to support it."""
    return ms(latency[f"p{percent_}_ms"]) + ("" if latency[f"p{percent_}_reliable"] else "~")


def machine_of(run: Run) -> str:
    """Processor, cores, GPUs, memory and system."""
    facts = run["machine"]
    gpus = [f"{len(facts['gpus'])} x {facts['gpus'][0]['name']}"] if facts["gpus"] else []
    memory = f"{facts['memory_bytes'] / 1e9:.0f} GB of memory"
    return ", ".join([facts["cpu"], f"{facts['usable_cores']} cores", *gpus, memory, facts["os"].partition(",")[0]])


def commit_of(run: Run) -> str:
    """The commit that was measured, and whether the working tree differed from it."""
    if run["commit"] is None:
        return "no commit"
    return f"commit `{run['commit'][:10]}`" + (" with uncommitted changes" if run["dirty"] else "")


def provenance(run: Run, name: str, command: str) -> str:
    """Machine, date, commit and versions of a run, its JSON, and the command that makes it again."""
    versions = ", ".join(f"{each} {run['versions'][each]}" for each in ("tabpfn", "torch", "python"))
    verb = "Simulated" if run["kind"] == "simulation" else "Measured"
    where = f"{verb} on {run['started_at'][:10]} on {machine_of(run)}; {commit_of(run)}; {versions}."
    lines = textwrap.wrap(command, 114, break_long_words=False, break_on_hyphens=False)
    return f"{paragraph(f'{where} [JSON](results/{name}.json)')}\n    " + " \\\n        ".join(lines) + "\n"


def options(config: Mapping[str, Any], *names: str) -> str:
    """Options of a command line as the run had them; one that was not set is left out."""
    parts = []
    for name in names:
        value = config.get(name)
        if value is None or value == []:
            continue
        shown = " ".join(map(_typed, value)) if isinstance(value, list) else _typed(value)
        parts.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(parts)


def _typed(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
