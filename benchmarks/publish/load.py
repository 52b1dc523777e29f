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
            ms(each["batch_rows"]["per_batch"]),
            ms(each["server_ms"]["queue"]),
            ms(each["server_ms"]["compute"]),
            "void" if each["void"] else "",
        ]
        for each in run["results"]
    ]
    size = "one-row requests" if config["rows"] == 1 else f"requests of {config['rows']} rows"
    note = f"Model `{config['model']}`, {size}, {config['duration']:g} s at each rate. {_checked(run)}{_knee(run)}"
    return f"{paragraph(note)}\n{table(head, rows)}\n{provenance(run, name, command(run))}"


def _checked(run: Run) -> str:
    """Answers that were compared with the answer alone."""
    verified = [each["verified"] for each in run["results"] if each["verified"]]
    if not verified:
        return "No answer was compared with the answer alone."
    checked, wrong = (sum(each[key] for each in verified) for key in ("compared", "mismatches"))
    return f"{count(checked)} answers were compared with the answer to the same record alone; {count(wrong)} differed."


def _knee(run: Run) -> str:
    """Where the rise of the rate ended, in a run that looked for the knee."""
    found = run.get("knee")
    if not found:
        return ""
    return f" Highest rate with nearly all answers in time: {count(found['highest_good_rate'])} ({found['ended']})."


def command(run: Run) -> str:
    """The command that made the run."""
    config = run["config"]
    knee = " --until-knee" if config.get("until_knee") else ""
    return (
        f"python -m benchmarks.online.demo --edge serve {options(config, 'rate')}{knee} {options(config, 'duration')}"
    )
