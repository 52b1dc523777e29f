"""Section of the `offline-engine` runs: the compiled backend and the tabpfn package, one predict call at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.publish.markdown import (
    Run,
    between,
    count,
    difference,
    megabytes,
    ms,
    options,
    paragraph,
    provenance,
    table,
    times,
)

ARCHITECTURES = {
    "v2": "TabPFN v2",
    "v2_5": "TabPFN v2.5",
    "v2_6": "TabPFN v2.6",
    "v3": "TabPFN v3",
    "v3_5": "TabPFN v3.5",
}
Result = Mapping[str, Any]


def name_of(arch: str, case: str) -> str:
    """A case for a reader: `TabPFN v3.5, random weights`, or the demo model by its name."""
    return f"Demo model `{case}`" if arch == "demo" else f"{ARCHITECTURES.get(arch, arch)}, random weights"


def section(runs: Mapping[str, Run], names: Sequence[str]) -> str:
    """Times, differences and sizes of every case of the named runs."""
    parts = []
    for name in names:
        run = runs[name]
        for case, facts in run["cases"].items():
            results = [result for result in run["results"] if result["case"] == case]
            size = f"{count(facts['context_rows'])} rows x {facts['features']} columns"
            note = f"Context of {size}, {facts['members']} ensemble members, {count(facts['parameters'])} parameters; "
            note += f"{run['torch_threads']} threads of torch."
            parts.append(f"### {name_of(facts['arch'], case)}\n\n{paragraph(note)}\n{times_table(results)}")
        parts.append(provenance(run, name, command(run)))
    cases = [facts for name in names for facts in runs[name]["cases"].values()]
    labels = [name_of(facts["arch"], case) for name in names for case, facts in runs[name]["cases"].items()]
    return "\n".join([*parts, "### Fitting and memory\n", sizes_table(labels, cases)])


def times_table(results: Sequence[Result]) -> str:
    """A row for each number of query rows, columns for each way in which the server's engine ran."""
    ways = list(dict.fromkeys((result["backend"], result["precision"]) for result in results))
    has_uncached = any(result.get("uncached_ms") for result in results)
    head = ["query rows", "`tabpfn`, ms"]
    head += [f"`{backend}`, {precision}, ms" for backend, precision in ways]
    head += [f"difference, {precision}" for _, precision in ways] + ["difference, `tabpfn`"]
    if has_uncached:
        head.append("`tabpfn` without cache, ms")
    rows = []
    for num_rows in sorted({result["rows"] for result in results}):
        cells = {(each["backend"], each["precision"]): each for each in results if each["rows"] == num_rows}
        found = [cells[way] for way in ways if way in cells]
        row = [count(num_rows), between([each["tabpfn_ms"] for each in found])]
        row += [f"{ms(each['compiled_ms'])} ({times(each['speedup'])})" for each in found]
        row += [difference(each["max_abs_diff"]) for each in found]
        row.append(difference(max(each["tabpfn_abs_diff"] for each in found)))
        if has_uncached:
            row.append(f"{between([each['uncached_ms'] for each in found])} ({_uncached(found)})")
        rows.append(row)
    return table(head, rows)


def _uncached(found: Sequence[Result]) -> str:
    return between([each["speedup_uncached"] for each in found], times)


def sizes_table(labels: Sequence[str], cases: Sequence[Mapping[str, Any]]) -> str:
    """Fit times, and bytes of tabpfn."""
    head = ["model", "fit of `compiled`, s", "fit of `tabpfn`, s", "`tabpfn` weights, MB"]
    head += ["`tabpfn` KV cache, MB", "the same in float32, MB"]
    rows = [
        [
            label,
            f"{facts['fit_s']:.1f}",
            f"{facts['tabpfn_fit_s']:.1f}",
            megabytes(facts["tabpfn_weights_bytes"]),
            megabytes(facts["tabpfn_kv_cache_bytes"]),
            megabytes(facts["tabpfn_float32_kv_cache_bytes"]),
        ]
        for label, facts in zip(labels, cases, strict=True)
    ]
    return table(head, rows)


def command(run: Run) -> str:
    """The command that made the run."""
    config = dict(run["config"])
    axes: tuple[str, ...] = ("arch", "rows", "precision", "threads", "pairs", "cell_seconds")
    if config["arch"] != ["demo"]:
        axes = ("arch", "context_rows", "features", "members", *axes[1:])
    return f"python -m benchmarks.offline.engine {options(config, *axes)}"
