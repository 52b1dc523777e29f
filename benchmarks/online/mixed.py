"""Interactive callers beside bulk callers, and overload.

Mixed: one-row requests (`x-priority: interactive`) at a share of the capacity, alone and beside bulk callers
(`x-priority: bulk`) that take what they can get; and bulk callers alone.

Overload: twice the capacity, each request with a deadline (`x-request-timeout-ms`). The results are the answers in time
per second, compared with the best of lower rates; how quickly the other requests were refused; and whether any request
was left without an outcome.

Rounds alternate, and medians are reported.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.machine import envelope
from benchmarks.online import bulk
from benchmarks.online.bulk import BulkLoad
from benchmarks.online.closed_loop import answers_per_s
from benchmarks.online.command import (
    Run,
    above_zero,
    add_process_options,
    add_run_options,
    at_least,
    not_negative,
    run_command,
    server_url,
)
from benchmarks.online.errors import Refused
from benchmarks.online.generator import Generator, Offer, raise_priority
from benchmarks.online.mixed_summary import summarise_mixed, summarise_overload
from benchmarks.online.probe import Prober, ProbeSettings, judge
from benchmarks.online.records import Record
from benchmarks.online.target import Ready, Target, make_ready
from benchmarks.peers import environments
from benchmarks.peers.records import draw_transactions
from benchmarks.peers.systems import SYSTEMS, System
from benchmarks.percentiles import rounded
from benchmarks.progress import Progress

KIND = "online-mixed"
_CAPACITY_CONNECTIONS, _CAPACITY_S = 128, 4.0
_LADDER = (0.6, 0.8, 1.0)
"""Rates, as shares of the capacity, among which the peak of goodput is looked for."""


async def run_mixed(given: argparse.Namespace) -> Run:
    """Everything, as JSON has it. Raises BenchmarkError, OSError."""
    system, records = SYSTEMS[given.system], draw_transactions()
    run = envelope(KIND, vars(given), [], system=system.name, capacity_per_s=None, mixed=None, overload=None)
    progress = Progress(3 * given.rounds + (1 + len(_LADDER)) * given.overload_rounds, "measurements")
    async with _running(system, given, records) as url:
        raise_priority(given.nice)
        async with Generator(given.processes) as generator:
            ready = await make_ready(url, system.wire, records, system.tolerance)
            capacity = given.capacity or await answers_per_s(ready.target, _CAPACITY_CONNECTIONS, _CAPACITY_S)
            progress.say(f"{system.name}: capacity of {capacity:.0f} one-row requests per second")
            bench = Bench(given, system, records, ready, generator, capacity, progress, run["results"])
            run["capacity_per_s"] = rounded(capacity, 1)
            run["mixed"] = await bench.mixed() if given.rounds else None
            run["overload"] = await bench.overload() if given.overload_rounds else None
    return run


@contextlib.asynccontextmanager
async def _running(system: System, given: argparse.Namespace, records: Sequence[Record]) -> AsyncIterator[str]:
    """The URL of the system: of one that runs already, or of one that is started and stopped here."""
    if given.url:
        yield given.url
        return
    if system.environment is not None:
        environments.install(system.environment)
    with tempfile.TemporaryDirectory() as folder:
        process = system.process(given.threads, Path(folder) / "log")
        try:
            await process.start(system.wire.request(f"127.0.0.1:{process.port}", [records[0]]))
            yield process.url
        finally:
            process.stop()


@dataclasses.dataclass
class Bench:
    """One ready system under the two loads; every probe is kept in `results`."""

    given: argparse.Namespace
    system: System
    records: Sequence[Record]
    ready: Ready
    generator: Generator
    capacity: float
    progress: Progress
    results: list[dict[str, Any]]

    def _target(self, headers: Mapping[str, str]) -> Target:
        host = f"{self.ready.target.host}:{self.ready.target.port}"
        requests = [self.system.wire.request(host, [record], headers) for record in self.records]
        return dataclasses.replace(self.ready.target, requests=requests)

    async def _offer(self, target: Target, rate: float, purpose: str) -> dict[str, Any]:
        given = self.given
        offer = Offer(
            rate=rate, duration_s=given.duration, warmup_s=given.warmup, bound_ms=given.bound_ms,
            seed=given.seed + len(self.results),
        )  # fmt: skip
        probe = judge(await self.generator.offer(target, offer), offer, given.max_lag_ms)
        self.results.append({"purpose": purpose, **probe})
        p99 = probe["latency"]["p99_ms"]
        self.progress.step(
            f"{purpose}, {rate:.0f} requests/s: p99 {'unknown' if p99 is None else f'{p99:.1f} ms'}, "
            f"{probe['goodput_per_s']:.0f} answers in time per second"
        )
        return probe

    async def _settle(self) -> None:
        await Prober(self.generator, self.ready.target, ProbeSettings(), self.ready.idle_ms).settle()

    async def mixed(self) -> dict[str, Any]:
        """Interactive alone, bulk alone, both; `--rounds` times."""
        given, rate = self.given, self.given.share * self.capacity
        target = self._target({"x-priority": "interactive"})
        await self._bulk_load().check()
        found: dict[str, list[float]] = {name: [] for name in ("alone_p99", "beside_p99", "bulk_alone", "bulk_beside")}
        wrong = 0
        for _ in range(given.rounds):
            await self._settle()
            found["alone_p99"].append(_p99_ms(await self._offer(target, rate, "interactive alone")))
            load = self._bulk_load()
            found["bulk_alone"].append(await bulk.alone(load, given.warmup, given.duration))
            self.progress.step(f"bulk alone: {found['bulk_alone'][-1]:.0f} rows/s")
            await self._settle()
            beside, rows_per_s, load_beside = await self._both(target, rate)
            found["beside_p99"].append(_p99_ms(beside))
            found["bulk_beside"].append(rows_per_s)
            wrong += load.num_wrong() + load_beside.num_wrong()
        return {**summarise_mixed(found, given.share), "interactive_rate": rounded(rate), "bulk_wrong_answers": wrong}

    def _bulk_load(self) -> BulkLoad:
        given = self.given
        return BulkLoad(
            self.ready, self.system.wire, self.records, given.bulk_rows, given.bulk_connections, given.bulk_timeout
        )

    async def _both(self, target: Target, rate: float) -> tuple[dict[str, Any], float, BulkLoad]:
        load, stop = self._bulk_load(), asyncio.Event()
        running = asyncio.create_task(load.run(stop))
        try:
            begin = time.monotonic() + self.given.warmup
            probe = await self._offer(target, rate, "interactive beside bulk")
            end = begin + self.given.duration
        finally:
            stop.set()
            await running
        return probe, load.rows_per_s(begin, end), load

    async def overload(self) -> dict[str, Any]:
        """Goodput at rates up to the capacity, then far above it; `--overload-rounds` times."""
        given = self.given
        target = self._target({"x-request-timeout-ms": f"{given.bound_ms:g}", "x-priority": "interactive"})
        below: list[list[float]] = []
        above: list[dict[str, Any]] = []
        for _ in range(given.overload_rounds):
            below.append([])
            for share in _LADDER:
                await self._settle()
                probe = await self._offer(target, share * self.capacity, "below capacity")
                below[-1].append(probe["goodput_per_s"])
            await self._settle()
            above.append(await self._offer(target, given.overload * self.capacity, "overload"))
        await self._settle()
        return summarise_overload(below, above)


def _p99_ms(probe: Mapping[str, Any]) -> float:
    p99: float | None = probe["latency"]["p99_ms"]
    if p99 is None:
        raise Refused(f"no interactive request was answered 200: {probe['by_status'] or probe['errors']}")
    return p99


def _add_load_options(parser: argparse.ArgumentParser) -> None:
    mixed, overload = parser.add_argument_group("mixed load"), parser.add_argument_group("overload")
    mixed.add_argument("--rounds", type=at_least(0), default=5, help="rounds of the mixed load; 0 leaves it out")
    mixed.add_argument(
        "--share", type=above_zero, default=0.4, help="share of the capacity that interactive callers ask for"
    )
    mixed.add_argument("--bulk-rows", type=at_least(1), default=1000, help="rows of a bulk request")
    mixed.add_argument("--bulk-connections", type=at_least(1), default=2, help="number of bulk callers")
    mixed.add_argument(
        "--bulk-timeout", type=above_zero, default=60.0, help="seconds after which a bulk request is given up"
    )
    overload.add_argument(
        "--overload-rounds", type=at_least(0), default=5, help="rounds of the overload; 0 leaves it out"
    )
    overload.add_argument(
        "--overload", type=above_zero, default=2.0, help="rate of the overload, as a multiple of the capacity"
    )
    both = parser.add_argument_group("both loads")
    both.add_argument(
        "--bound-ms", type=above_zero, default=100.0, help="latency that counts as in time; the deadline in overload"
    )
    both.add_argument("--duration", type=above_zero, default=8.0, help="seconds of each measurement")
    both.add_argument("--warmup", type=not_negative, default=2.0, help="seconds of the same load before, not counted")
    both.add_argument(
        "--seed", type=at_least(0), default=1, help="seed of the arrivals; each measurement adds its number"
    )
    add_process_options(both)


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.mixed", __doc__)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--system", choices=tuple(SYSTEMS), default="tabpfn-serve", metavar="NAME",
        help=f"the system to start, or, with --url, the system that runs there: {', '.join(SYSTEMS)}",
    )  # fmt: skip
    server.add_argument("--url", type=server_url, help="a running server, http://HOST:PORT; without it one is started")
    server.add_argument(
        "--capacity", type=above_zero, help="one-row requests per second; without it the rate of a closed loop is taken"
    )
    server.add_argument("--threads", type=at_least(1), default=1, help="torch threads of the system that is started")
    _add_load_options(parser)
    add_run_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    run = run_command(parser, given, KIND, lambda: run_mixed(given))
    for part in ("mixed", "overload"):
        for name, value in (run[part] or {}).items():
            print(f"{part:8}  {name:32}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
