"""Section of the `online-overhead` run: the server's own cost beside its engine."""

from __future__ import annotations

from benchmarks.publish.markdown import Run, count, ms, options, paragraph, percent, provenance, table


def section(run: Run, name: str) -> str:
    """A lone request, and saturation, for each way to run the server; then the steps of one request."""
    config = run["config"]
    head = ["system", "lone request, ms", "lone engine call, ms", "added by the server, ms", "rows answered, 1/s"]
    head += ["rows of the engine alone, 1/s", "share of the engine's throughput", "time without a batch"]
    head.append("CPU ms a request")
    rows = []
    for system, found in run["systems"].items():
        idle, full = found["idle"], found["saturation"]
        rows.append(
            [
                f"{system} ({found['settings']})",
                *(ms(idle[key]) for key in ("server_ms", "engine_ms", "added_ms")),
                count(full["rows_per_s"]),
                count(full["engine_rows_per_s"]),
                percent(full["share"]),
                percent(full["between_batches"]),
                ms(full["cpu_ms_per_request"]),
            ]
        )
    steps = run["steps_ms"]
    named = {"parse": "reading the JSON", "encode": "encoding the row", "compute": "the engine's call"}
    named["serialise"] = "writing the answer"
    note = paragraph(
        f"Medians of {config['rounds']} rounds. At saturation {config['connections']} callers ask again as soon as "
        "they are answered; the engine alone then runs batches of the same sizes."
    )
    return (
        f"{note}\n{table(head, rows)}\n"
        "The steps of one request, each alone in one process:\n\n"
        f"{table(['step', 'ms'], [[named.get(step, step), f'{value:.3f}'] for step, value in steps.items()])}\n"
        f"{provenance(run, name, command(run))}"
    )


def command(run: Run) -> str:
    """The command that made the run."""
    return f"python -m benchmarks.online.overhead {options(run['config'], 'systems', 'rounds')}"
