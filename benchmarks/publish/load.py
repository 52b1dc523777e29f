"""Section of the `online-load` run: latency and goodput against the offered rate."""

from __future__ import annotations

from benchmarks.publish.markdown import Run, count, ms, options, paragraph, percentile, provenance, table


def section(run: Run, name: str) -> str:
    """One line for each offered rate."""
    config = run["config"]
    head = [
        f"offered, {config['arrivals'].capitalize()}, 1/s", "sent", "answered 200", "p50, ms", "p90, ms", "p99, ms",
        f"within {config['deadline_ms']:g} ms, 1/s", "rows in a batch, mean", "queue, ms", "compute, ms", "",
    ]  # fmt: skip
    rows = [
        [
            count(each["rate"]),
            count(each["sent"]),
            count(each["ok"]),
            *(percentile(each["latency"], percent) for percent in (50, 90, 99)),
            count(each["goodput_per_s"]),
            f"{each['batch_rows']['per_batch']:.1f}",
            ms(each["server_ms"]["queue"]),
            ms(each["server_ms"]["compute"]),
            "void" if each["void"] else "",
        ]
        for each in run["results"]
    ]
    checked = sum(each["verified"]["compared"] for each in run["results"])
    wrong = sum(each["verified"]["mismatches"] for each in run["results"])
    size = "one-row requests" if config["rows"] == 1 else f"requests of {config['rows']} rows"
    note = paragraph(
        f"Model `{config['model']}`, {size}, {config['duration']:g} s at each rate. {count(checked)} answers were "
        f"compared with the answer to the same record alone; {count(wrong)} differed."
    )
    return f"{note}\n{table(head, rows)}\n{provenance(run, name, command(run))}"


def command(run: Run) -> str:
    """The command that made the run."""
    return f"python -m benchmarks.online.demo --edge serve {options(run['config'], 'rate', 'duration')}"
