"""Section of the `online-mlperf` run: the verdict of MLPerf's load generator."""

from __future__ import annotations

from benchmarks.publish.markdown import Run, count, ms, options, provenance, table


def section(run: Run, name: str) -> str:
    """One line for each offered rate."""
    config = run["config"]
    head = ["offered, 1/s", "LoadGen's verdict", "requests", f"later than {config['bound_ms']:g} ms", "wrong answers"]
    head += ["p50, ms", "p99, ms"]
    rows = [
        [
            count(each["rate"]),
            f"{each['validity']}{'' if each['valid'] else ', not valid here'}",
            count(each["queries"]),
            count(each["late"]),
            count(each["mismatches"]),
            ms(each["p50_ms"]),
            ms(each["p99_ms"]),
        ]
        for each in run["results"]
    ]
    return (
        f"Scenario Server, p99 within {config['bound_ms']:g} ms, {config['duration']:g} s at each rate; MLPerf's rules "
        f"ask for 600 s.\n\n{table(head, rows)}\n{provenance(run, name, command(run))}"
    )


def command(run: Run) -> str:
    """The command that made the run."""
    return f"python -m benchmarks.online.mlperf {options(run['config'], 'rate', 'duration')}"
