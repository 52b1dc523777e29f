"""Section of the `online-mixed` runs: bulk requests beside interactive ones, and overload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.publish.markdown import Run, between, count, ms, options, paragraph, percent, provenance, table, times
from benchmarks.publish.peers import name_of


def section(runs: Mapping[str, Run], names: Sequence[str]) -> str:
    """Interactive requests beside bulk on every system, then overload where it was measured."""
    mixed = {name: runs[name] for name in names if runs[name]["mixed"]}
    overloaded = {name: runs[name] for name in names if runs[name]["overload"]}
    parts = ["### Interactive requests beside bulk requests\n", _mixed(list(mixed.values()))]
    if overloaded:
        parts += ["### Overload\n", *map(_overload, overloaded.values())]
    return "\n".join([*parts, *(provenance(runs[name], name, command(runs[name])) for name in names)])


def _mixed(runs: Sequence[Run]) -> str:
    config = runs[0]["config"]
    head = ["system", "interactive, 1/s", "p99 alone, ms", "p99 beside bulk, ms", "ratio", "bulk alone, rows/s"]
    head += ["bulk beside, rows/s", "of the free capacity", "rounds"]
    rows = []
    for run in runs:
        found = run["mixed"]
        rows.append(
            [
                name_of(run["system"]),
                count(found["interactive_rate"]),
                ms(found["interactive_p99_ms_alone"]),
                ms(found["interactive_p99_ms_beside_bulk"]),
                times(found["interactive_p99_ratio"]),
                count(found["bulk_rows_per_s_alone"]),
                count(found["bulk_rows_per_s_beside"]),
                percent(found["bulk_share_of_room"]),
                str(found["rounds"]),
            ]
        )
    note = paragraph(
        f"One-row requests at {percent(config['share'])} of the capacity, beside {config['bulk_connections']} callers "
        f"of {count(config['bulk_rows'])} rows each that ask again as soon as they are answered. Medians over the "
        "rounds; the ratio is the median of the rounds' ratios."
    )
    return f"{note}\n{table(head, rows)}"


def _overload(run: Run) -> str:
    found, config = run["overload"], run["config"]
    statuses = {int(status): number for status, number in found["by_status"].items()}
    total = sum(statuses.values()) + found["unanswered"]
    rows = [
        ["offered, 1/s", f"{count(found['rate'])}: {config['overload']:g} times the capacity"],
        [f"answered within {config['bound_ms']:g} ms, 1/s", count(found["goodput_per_s"])],
        ["the same at the best rate up to the capacity, 1/s", count(found["peak_goodput_per_s"])],
        ["share of that peak, median (range) of the rounds", _share_of_peak(found)],
        ["refused at once (429)", f"{count(found['refused'])} of {count(total)}, p99 {ms(found['refusal_p99_ms'])} ms"],
        ["expired (504), of the admitted", percent(found["expired"] / max(1, statuses[200] + found["expired"]), 1)],
        ["without any outcome", count(found["unanswered"])],
        ["wrong answers", count(found["mismatches"])],
    ]
    return f"{name_of(run['system'])}, {config['overload_rounds']} rounds.\n\n{table(['', ''], rows)}"


def _share_of_peak(found: Mapping[str, object]) -> str:
    rounds = found["rounds_of_peak"]
    assert isinstance(rounds, list)
    share = found["goodput_of_peak"]
    assert isinstance(share, float)
    return f"{percent(share)} ({between(rounds, percent)})"


def command(run: Run) -> str:
    """The command that made the run."""
    return f"python -m benchmarks.online.mixed {options(run['config'], 'system', 'rounds', 'overload_rounds')}"
