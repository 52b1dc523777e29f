"""tabpfn-serve and other servers with the same model, in one run.

Installs each peer in an environment of its own, starts all systems on 127.0.0.1, checks their answers, and measures
them in interleaved rounds: the highest Poisson rate whose p99 stays within 100 ms, then latency and CPU time at half of
the best peer's highest rate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.machine import ROOT, envelope, write_json
from benchmarks.online.arrivals import ARRIVALS
from benchmarks.online.bisection import SearchSettings
from benchmarks.online.command import Run, above_zero, add_run_options, at_least, run_command
from benchmarks.online.errors import StartFailed
from benchmarks.online.probe import ProbeSettings
from benchmarks.online.search import add_probe_options
from benchmarks.peers import environments
from benchmarks.peers.contender import Contender
from benchmarks.peers.process import stop_at_sigterm
from benchmarks.peers.rounds import Plan, run_rounds, summarise_systems
from benchmarks.peers.systems import SYSTEMS

KIND = "online-peers"
_EXPECTED_S = 120
_PROBE = ProbeSettings(min_requests=800, min_s=3.0, max_s=8.0)


async def run_peers(given: argparse.Namespace) -> Run:
    """The whole run, as JSON has it; written after every round, too. Raises BenchmarkError, OSError."""
    plan, systems = _plan(given), [SYSTEMS[name] for name in given.systems]
    run = envelope(KIND, dataclasses.asdict(plan), [], rates={}, systems={})
    for name in dict.fromkeys(system.environment for system in systems if system.environment is not None):
        print(f"installing the environment of {name}, unless it is there", file=sys.stderr, flush=True)
        environments.install(name)
    records, answers = _records_and_answers(plan.threads)

    def keep(contenders: Sequence[Contender], rates: Mapping[str, float]) -> None:
        results = [probe for contender in contenders for probe in contender.probes]
        run.update(rates=dict(rates), systems=summarise_systems(contenders), results=results)
        if given.json is not None:
            write_json(run, given.json)

    with tempfile.TemporaryDirectory() as folder:
        logs = given.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        keep(*await run_rounds(plan, systems, records, answers, logs, keep))
    return run


def _records_and_answers(threads: int) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """The requests' records and the right answers, from another process, so that this one holds no torch."""
    command = [sys.executable, "-m", "benchmarks.peers.records", "--threads", str(threads)]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=_EXPECTED_S, check=True)
    except subprocess.SubprocessError as error:
        raise StartFailed(f"the expected answers could not be computed: {error}") from error
    drawn = json.loads(done.stdout)
    return drawn["records"], drawn["answers"]


def table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each system."""
    head = (
        "system",
        "engine",
        "rate/s",
        "of rounds",
        "p50 half",
        "p99 half",
        "p50 half*",
        "p99 half*",
        "CPU ms",
        "idle ms",
    )
    rows = [head, *(_row(name, found) for name, found in systems.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("rate/s: highest rate whose p99 stays within 100 ms, median of the rounds; p50, p99, CPU, idle: ms")
    lines.append("half: at half of the best peer's highest rate with tabpfn's engine; half*: with the compiled engine")
    lines += [f"{name} FAILED: {failure}" for name, found in systems.items() for failure in found["failures"]]
    return "\n".join(lines)


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    keys = (
        "p50_ms_half_load", "p99_ms_half_load", "p50_ms_half_load_compiled_engine", "p99_ms_half_load_compiled_engine",
        "cpu_ms_per_request", "idle_p50_ms",
    )  # fmt: skip
    rates = found["max_rates"]
    spread = f"{min(rates):.0f} to {max(rates):.0f}" if rates else "-"
    return (
        name, found["engine"], _cell(found["max_rate_p99_100ms"]), spread, *(_cell(found.get(key)) for key in keys)
    )  # fmt: skip


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _plan(given: argparse.Namespace) -> Plan:
    probe = dataclasses.replace(
        _PROBE,
        min_requests=given.min_requests,
        min_s=given.min_s,
        max_s=given.max_s,
        warmup_s=given.warmup_s,
        arrivals=given.arrivals,
        seed=given.seed,
    )
    return Plan(
        rounds=given.rounds,
        budget_s=given.budget_s,
        threads=given.threads,
        processes=given.processes,
        nice=given.nice,
        search_probe=probe,
        load_probe=dataclasses.replace(probe, min_s=given.load_s, max_s=max(given.load_s, given.max_s)),
        first=SearchSettings(step=1.6, resolution=2 * given.resolution, low=given.low),
        # the median of the rounds is finer than any one of them
        again=SearchSettings(step=1 + 1.2 * given.resolution, resolution=1.3 * given.resolution, low=given.low),
    )


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.peers", __doc__)
    parser.add_argument(
        "--systems", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS), metavar="NAME",
        help=f"systems to compare, of: {', '.join(SYSTEMS)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=at_least(1), default=5, help="interleaved rounds; medians are reported")
    parser.add_argument(
        "--budget-s", type=above_zero, default=3000.0, help="no round of searches begins that would end after this time"
    )
    parser.add_argument("--threads", type=at_least(1), default=1, help="torch threads, the same in every system")
    add_probe_options(parser, _PROBE)
    parser.add_argument("--load-s", type=above_zero, default=4.0, help="shortest measurement at half load, in seconds")
    parser.add_argument(
        "--resolution", type=above_zero, default=0.1, help="fineness of the search, as a share of the rate"
    )
    parser.add_argument(
        "--low", type=above_zero, default=5.0, help="lowest rate to try; a system that fails even there has 0"
    )
    parser.add_argument(
        "--arrivals", choices=tuple(ARRIVALS), default="poisson",
        help="bursty offers four times the rate a tenth of the time, and the same rate on average",
    )  # fmt: skip
    parser.add_argument("--seed", type=at_least(0), default=1, help="seed of the arrivals; each probe adds its number")
    parser.add_argument("--processes", type=at_least(1), default=1, help="generator processes that share the load")
    parser.add_argument(
        "--nice", type=int, default=-10, help="nice value of the generator, where the system lets it be set"
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the systems' own output in this folder")
    add_run_options(parser, "after every round")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1 where a system failed."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    stop_at_sigterm()
    run = run_command(parser, given, KIND, lambda: run_peers(given))
    print(table(run["systems"]))
    return 1 if any(found["failure"] for found in run["systems"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
