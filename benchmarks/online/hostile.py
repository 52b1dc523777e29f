"""What callers that mean no good do to the others: latency of ordinary callers alone, and beside each attack.

The ordinary callers ask at a modest rate, Poisson. The attacks: one connection that floods headers, bodies of 8 MB that
stall half-way, idle connections, and all of them together. Rounds alternate. In each, the ordinary callers are alone
first, then beside each attack, so each ratio is of neighbours in time. The resident memory of the server is read before
the first attack, during each, and after the last.

The idle connections need open files. Where the system permits fewer, fewer are opened, and the run says how many.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.machine import envelope
from benchmarks.online.command import Run, above_zero, add_process_options, at_least, not_negative, run_command
from benchmarks.online.errors import Refused, WrongAnswers
from benchmarks.online.generator import Generator, Offer, raise_priority
from benchmarks.online.hostile_callers import Attack, HostileCallers, permitted_open_files
from benchmarks.online.summary import summarise_offer
from benchmarks.online.target import Target, make_ready
from benchmarks.peers.process import Process, stop_at_sigterm
from benchmarks.peers.records import draw_transactions
from benchmarks.peers.systems import SYSTEMS
from benchmarks.percentiles import rounded
from benchmarks.progress import Progress

KIND = "online-hostile"
ALONE = "alone"
_SYSTEM = SYSTEMS["tabpfn-serve-uvicorn"]
_REST_S = 4.0
"""After an attack, in which the server ends what is left of it."""


def attacks_of(given: argparse.Namespace) -> dict[str, Attack]:
    """Every attack by its name, within the open files that the system permits."""
    attacks = {
        "headers": Attack(floods=given.floods),
        "bodies": Attack(stalls=given.stalls),
        "idle": Attack(idle=given.idle),
        "all": Attack(given.floods, given.stalls, given.idle),
    }
    most = permitted_open_files()
    return {name: attack.within(most) for name, attack in attacks.items()}


async def run_hostile(given: argparse.Namespace) -> Run:
    """Everything, as JSON has it. Raises BenchmarkError, OSError."""
    attacks, records = attacks_of(given), draw_transactions()
    run = envelope(KIND, vars(given), [], system=_SYSTEM.name, idle_connections=attacks["idle"].idle, summary=None)
    with tempfile.TemporaryDirectory() as folder:
        process = _SYSTEM.process(given.threads, Path(folder) / "log")
        try:
            await process.start(_SYSTEM.wire.request(f"127.0.0.1:{process.port}", [records[0]]))
            target = (await make_ready(process.url, _SYSTEM.wire, records, _SYSTEM.tolerance)).target
            raise_priority(given.nice)
            async with Generator(given.processes) as generator:
                bench = Bench(given, process, target, generator, run["results"])
                run["summary"] = await bench.measure(attacks)
        finally:
            process.stop()
    return run


class Bench:
    """One server under each attack in turn; every offer is kept in `results`."""

    def __init__(
        self,
        given: argparse.Namespace,
        process: Process,
        target: Target,
        generator: Generator,
        results: list[dict[str, Any]],
    ) -> None:
        self._given, self._process, self._target, self._generator = given, process, target, generator
        self._results = results
        self._progress = Progress(1 + 5 * given.rounds, "measurements")

    async def measure(self, attacks: Mapping[str, Attack]) -> dict[str, Any]:
        """All rounds, and their summary. Raises BenchmarkError, OSError."""
        await self._offer(ALONE, -1)  # the server's first load
        self._results.clear()
        before = self._process.rss_bytes()
        for number in range(self._given.rounds):
            await self._offer(ALONE, number)
            for name, attack in attacks.items():
                with HostileCallers(self._target.host, self._target.port, attack) as callers:
                    num_idle = await asyncio.to_thread(callers.ready)
                    await self._offer(name, number, idle_connections=num_idle)
                await asyncio.sleep(_REST_S)
        return {
            **summarise_rounds(self._results),
            "rss_before_bytes": before,
            "rss_after_bytes": self._process.rss_bytes(),
        }

    async def _offer(self, attack: str, number: int, **more: Any) -> None:
        given = self._given
        offer = Offer(
            rate=given.rate, duration_s=given.duration, warmup_s=given.warmup, seed=given.seed + len(self._results)
        )
        cpu_s, began = self._process.cpu_s(), time.monotonic()
        seen = await self._generator.offer(self._target, offer)
        cpu_share = (self._process.cpu_s() - cpu_s) / (time.monotonic() - began)
        if seen.mismatches:
            raise WrongAnswers(f"beside the attack {attack!r}, {seen.mismatches} answers differ from those given alone")
        found = summarise_offer(seen, offer, given.max_lag_ms)
        if found["latency"]["p99_ms"] is None:
            raise Refused(
                f"beside the attack {attack!r} no request was answered: {found['by_status'] or found['errors']}"
            )
        found = {"attack": attack, "round": number, **found, **more}
        found |= {"cpu_share": rounded(cpu_share), "rss_bytes": self._process.rss_bytes()}
        self._results.append(found)
        self._progress.step(
            f"{attack}: p99 {found['latency']['p99_ms']:.1f} ms, {found['ok']} of {found['scheduled']} answered"
        )


def summarise_rounds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By attack: the median p99, and the median of its ratio to the p99 of the same round alone.

    `cpu_share` is the processor time of the server per second. `unanswered` counts the requests without a 200.
    """
    alone = {each["round"]: each["latency"]["p99_ms"] for each in results if each["attack"] == ALONE}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(each["attack"] for each in results):
        own = [each for each in results if each["attack"] == name]
        found[name] = {
            "p99_ms": rounded(statistics.median(each["latency"]["p99_ms"] for each in own)),
            "p99_ratio": rounded(statistics.median(each["latency"]["p99_ms"] / alone[each["round"]] for each in own)),
            "cpu_share": rounded(statistics.median(each["cpu_share"] for each in own)),
            "unanswered": sum(each["scheduled"] - each["ok"] for each in own),
            "rss_bytes": max(each["rss_bytes"] for each in own),
            "idle_connections": min((each.get("idle_connections", 0) for each in own), default=0),
        }
    return {"attacks": found}


def table(run: Mapping[str, Any]) -> str:
    """A line for each attack, for a terminal."""
    summary = run["summary"]
    lines = [f"{'attack':10} {'p99 ms':>8} {'ratio':>6} {'CPU':>6} {'unanswered':>10} {'RSS MB':>7} {'idle':>6}"]
    for name, found in summary["attacks"].items():
        lines.append(
            f"{name:10} {found['p99_ms']:8.1f} {found['p99_ratio']:6.2f} {found['cpu_share']:6.3f} "
            f"{found['unanswered']:10d} {found['rss_bytes'] / 1e6:7.0f} {found['idle_connections']:6d}"
        )
    before, after = summary["rss_before_bytes"] / 1e6, summary["rss_after_bytes"] / 1e6
    return "\n".join([*lines, f"RSS before the first attack {before:.0f} MB, after the last {after:.0f} MB"])


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.hostile", __doc__)
    parser.add_argument("--rate", type=above_zero, default=50.0, help="ordinary requests per second, of one row each")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="rounds; medians are reported")
    parser.add_argument("--duration", type=above_zero, default=10.0, help="seconds of each measurement")
    parser.add_argument("--warmup", type=not_negative, default=2.0, help="seconds of the same load before, not counted")
    parser.add_argument("--floods", type=at_least(0), default=1, help="connections that flood headers")
    parser.add_argument("--stalls", type=at_least(0), default=40, help="connections that stall within a body of 8 MB")
    parser.add_argument("--idle", type=at_least(0), default=10_000, help="idle connections, if the open files allow it")
    parser.add_argument("--seed", type=at_least(0), default=1, help="seed of the arrivals; each measurement adds one")
    parser.add_argument("--threads", type=at_least(1), default=1, help="torch threads of the server")
    add_process_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the run to this file, at the end of the run")
    parser.add_argument(
        "--from-json", type=Path, metavar="FILE", help="measure nothing: print the run that an earlier --json wrote"
    )
    parser.set_defaults(plot=None)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    stop_at_sigterm()
    print(table(run_command(parser, given, KIND, lambda: run_hostile(given))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
