"""tabpfn-serve beside its peers, in one run: `python -m benchmarks.peers --help`.

Installs each peer in an environment of its own, starts all systems on 127.0.0.1, checks their answers, and measures
them in interleaved rounds (`rounds.py`): the highest Poisson rate with p99 within 100 ms, latency and CPU at half of
the best peer's highest rate.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.machine import ROOT, envelope, write_json
from benchmarks.online.bisection import SearchSettings
from benchmarks.online.probe import ProbeSettings
from benchmarks.peers import environments
from benchmarks.peers.contender import Contender
from benchmarks.peers.rounds import Plan, run_rounds, summarise_systems
from benchmarks.peers.systems import SYSTEMS, System

_EXPECTED_S = 120


def run_peers(plan: Plan, systems: Sequence[System], logs: Path, to_json: Path | None) -> dict[str, Any]:
    """The whole run as JSON; written after every round, too."""
    for name in dict.fromkeys(system.environment for system in systems if system.environment is not None):
        environments.install(name)
    records, answers = _records_and_answers(plan.threads)
    run = envelope("online-peers", dataclasses.asdict(plan), [])

    def keep(contenders: Sequence[Contender], rates: Mapping[str, float]) -> None:
        results = [probe for contender in contenders for probe in contender.probes]
        run.update(rates=dict(rates), systems=summarise_systems(contenders), results=results)
        if to_json is not None:
            write_json(run, to_json)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        keep(*runner.run(run_rounds(plan, systems, records, answers, logs, keep)))
    return run


def _records_and_answers(threads: int) -> tuple[list[dict[str, Any]], list[list[float]]]:
    command = [sys.executable, "-m", "benchmarks.peers.records", "--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=_EXPECTED_S, check=True)
    drawn = json.loads(done.stdout)
    return drawn["records"], drawn["answers"]


def table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each system."""
    head = ("system", "engine", "max rate/s", "p50 half", "p99 half", "p50 half*", "p99 half*", "CPU ms", "idle ms")
    keys = (
        "engine", "max_rate_p99_100ms", "p50_ms_half_load", "p99_ms_half_load", "p50_ms_half_load_compiled_engine",
        "p99_ms_half_load_compiled_engine", "cpu_ms_per_request", "idle_p50_ms",
    )  # fmt: skip
    rows = [head, *((name, *(_cell(found.get(key)) for key in keys)) for name, found in systems.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append("half: half of the best peer's highest rate with tabpfn's engine; half*: with the compiled engine")
    lines += [f"{name} FAILED: {failure}" for name, found in systems.items() for failure in found["failures"]]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.1f}"


def _plan(given: argparse.Namespace) -> Plan:
    probe = ProbeSettings(
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="of everything, interleaved; medians are reported")
    parser.add_argument(
        "--budget-s", type=float, default=3000, help="no round of searches begins that would end after this"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, the same in every system")
    parser.add_argument("--processes", type=int, default=1, help="generator processes")
    parser.add_argument("--nice", type=int, default=-10, help="of the generator, where it may be set")
    parser.add_argument("--min-requests", type=int, default=800, help="of a probe, unless --max-s ends it before")
    parser.add_argument("--min-s", type=float, default=3.0, help="shortest probe")
    parser.add_argument("--max-s", type=float, default=8.0, help="longest probe")
    parser.add_argument("--load-s", type=float, default=4.0, help="shortest measurement at half load")
    parser.add_argument("--warmup-s", type=float, default=1.0)
    parser.add_argument("--resolution", type=float, default=0.1, help="of the search, as a share of the rate")
    parser.add_argument("--low", type=float, default=5.0, help="a system that fails even at this rate has 0")
    parser.add_argument("--arrivals", choices=("poisson", "bursty"), default="poisson")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the run here")
    parser.add_argument("--plot", type=Path, help="draw it here (PNG)")
    parser.add_argument("--logs", type=Path, help="keep the systems' own output in this folder")
    return parser


def _end_once(*_: object) -> None:
    """What was started is stopped on the way out; a second signal must not cut that short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end_once)
    with tempfile.TemporaryDirectory() as folder:
        logs = given.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        run = run_peers(_plan(given), [SYSTEMS[name] for name in given.systems], logs, given.json)
    if given.plot:
        from benchmarks.report import plot

        plot(run, given.plot)
    print(table(run["systems"]))
    return 1 if any(found["failure"] for found in run["systems"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
