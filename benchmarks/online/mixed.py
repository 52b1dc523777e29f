"""Interactive callers beside bulk ones, and too many callers: `python -m benchmarks.online.mixed --help`.

Mixed: one-row requests (`x-priority: interactive`) at a share of the capacity, alone and beside bulk callers
(`x-priority: bulk`) who take what they can get; and bulk alone. Overload: twice the capacity, each request with a
deadline (`x-request-timeout-ms`); the answers in time per second beside the best of lower rates, how quickly the others
were refused, and whether any request was left without an outcome. Rounds alternate, medians are reported.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import envelope
from benchmarks.online import bulk
from benchmarks.online.bulk import BulkLoad
from benchmarks.online.command import run_command
from benchmarks.online.generator import Generator, Offer, Target, raise_priority
from benchmarks.online.probe import Prober, ProbeSettings, judge
from benchmarks.online.records import Record
from benchmarks.online.target import Ready, closed_loop, make_ready
from benchmarks.online.verify import Refused
from benchmarks.peers import environments
from benchmarks.peers.process import StartFailed
from benchmarks.peers.records import draw_transactions
from benchmarks.peers.systems import SYSTEMS, System
from benchmarks.percentiles import rounded

_CAPACITY_CONNECTIONS, _CAPACITY_S = 128, 4.0
_LADDER = (0.6, 0.8, 1.0)
"""Rates, as shares of the capacity, among which the peak of goodput is looked for."""


async def run_mixed(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON. Raises Refused, StartFailed, OSError."""
    system, records = SYSTEMS[given.system], draw_transactions()
    async with _running(system, given, records) as url:
        raise_priority(given.nice)
        async with Generator(given.processes) as generator:
            ready = await make_ready(url, system.wire, records, system.tolerance)
            capacity = given.capacity or await closed_loop(ready.target, _CAPACITY_CONNECTIONS, _CAPACITY_S)
            _tell(f"{system.name}: capacity {capacity:.0f} one-row requests per second")
            bench = Bench(given, system, records, ready, generator, capacity)
            mixed = await bench.mixed() if given.rounds else None
            overload = await bench.overload() if given.overload_rounds else None
    return envelope(
        "online-mixed", vars(given), bench.results, system=system.name, capacity_per_s=rounded(capacity, 1),
        mixed=mixed, overload=overload,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _running(system: System, given: argparse.Namespace, records: Sequence[Record]) -> AsyncIterator[str]:
    """The URL of the system: one that runs already, or one that is started and stopped here."""
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
    """One ready system under the two loads."""

    given: argparse.Namespace
    system: System
    records: Sequence[Record]
    ready: Ready
    generator: Generator
    capacity: float
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def _target(self, headers: Mapping[str, str]) -> Target:
        host = f"{self.ready.target.host}:{self.ready.target.port}"
        requests = [self.system.wire.request(host, [record], headers) for record in self.records]
        return dataclasses.replace(self.ready.target, requests=requests)

    async def _offer(self, target: Target, rate: float, purpose: str, bound_ms: float) -> dict[str, Any]:
        given = self.given
        offer = Offer(
            rate=rate, duration_s=given.duration, warmup_s=given.warmup, bound_ms=bound_ms,
            seed=given.seed + len(self.results),
        )  # fmt: skip
        probe = judge(await self.generator.offer(target, offer), offer, given.max_lag_ms)
        self.results.append({"purpose": purpose, **probe})
        return probe

    async def _settle(self) -> None:
        await Prober(self.generator, self.ready.target, ProbeSettings(), self.ready.idle_ms).settle()

    async def mixed(self) -> dict[str, Any]:
        """Interactive alone, bulk alone, both; so many rounds."""
        given, rate = self.given, self.given.share * self.capacity
        target = self._target({"x-priority": "interactive"})
        await self._bulk_load().check()
        found: dict[str, list[float]] = {name: [] for name in ("alone_p99", "beside_p99", "bulk_alone", "bulk_beside")}
        wrong = 0
        for number in range(given.rounds):
            await self._settle()
            probe = await self._offer(target, rate, "interactive alone", given.bound_ms)
            found["alone_p99"].append(probe["latency"]["p99_ms"])
            load = self._bulk_load()
            found["bulk_alone"].append(await bulk.alone(load, given.warmup, given.duration))
            await self._settle()
            beside, rows_per_s, load_beside = await self._both(target, rate)
            found["beside_p99"].append(beside["latency"]["p99_ms"])
            found["bulk_beside"].append(rows_per_s)
            wrong += load.num_wrong() + load_beside.num_wrong()
            _tell(f"round {number + 1}: p99 alone {found['alone_p99'][-1]}, beside bulk {found['beside_p99'][-1]} ms")
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
            probe = await self._offer(target, rate, "interactive beside bulk", self.given.bound_ms)
            end = begin + self.given.duration
        finally:
            stop.set()
            await running
        return probe, load.rows_per_s(begin, end), load

    async def overload(self) -> dict[str, Any]:
        """Goodput at rates up to the capacity, then far above it; so many rounds."""
        given = self.given
        target = self._target({"x-request-timeout-ms": f"{given.bound_ms:g}", "x-priority": "interactive"})
        below: list[list[float]] = []
        above: list[dict[str, Any]] = []
        for number in range(given.overload_rounds):
            below.append([])
            for share in _LADDER:
                await self._settle()
                probe = await self._offer(target, share * self.capacity, "below capacity", given.bound_ms)
                below[-1].append(probe["goodput_per_s"])
            await self._settle()
            above.append(await self._offer(target, given.overload * self.capacity, "overload", given.bound_ms))
            _tell(f"overload, round {number + 1}: {above[-1]['goodput_per_s']} in time a second, below {below[-1]}")
        await self._settle()
        return summarise_overload(below, above)


def summarise_mixed(found: Mapping[str, Sequence[float]], share: float) -> dict[str, Any]:
    """Medians; the two ratios are medians of the rounds' own. The room is what interactive callers leave to bulk."""
    slower = [beside / alone for beside, alone in zip(found["beside_p99"], found["alone_p99"], strict=True)]
    of_room = [
        beside / (alone * (1 - share)) if alone else 0.0
        for beside, alone in zip(found["bulk_beside"], found["bulk_alone"], strict=True)
    ]
    return {
        "interactive_p99_ms_alone": rounded(statistics.median(found["alone_p99"])),
        "interactive_p99_ms_beside_bulk": rounded(statistics.median(found["beside_p99"])),
        "interactive_p99_ratio": rounded(statistics.median(slower)),
        "bulk_rows_per_s_alone": rounded(statistics.median(found["bulk_alone"]), 1),
        "bulk_rows_per_s_beside": rounded(statistics.median(found["bulk_beside"]), 1),
        "bulk_share_of_room": rounded(statistics.median(of_room)),
        "rounds": len(slower),
    }


def summarise_overload(below: Sequence[Sequence[float]], above: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds, and sums of what is counted.

    `below`: each round's goodput at each rate up to the capacity. The peak is the rate with the highest median; the
    ratio is the median of the rounds' own, to what that rate got in the same round. `unanswered`: without an outcome,
    which must never be; `expired`: admitted and answered 504 at its deadline.
    """
    by_rate = list(zip(*below, strict=True))
    peak = max(by_rate, key=statistics.median)
    of_peak = [probe["goodput_per_s"] / at_peak for probe, at_peak in zip(above, peak, strict=True) if at_peak]
    refusals_ms = [p99 for probe in above if (p99 := probe["refusal"]["p99_ms"]) is not None]
    by_status, errors = _total(above, "by_status"), _total(above, "errors")
    return {
        "rate": above[0]["rate"],
        "goodput_per_s": rounded(statistics.median(probe["goodput_per_s"] for probe in above), 1),
        "peak_goodput_per_s": rounded(statistics.median(peak), 1),
        "goodput_of_peak": rounded(statistics.median(of_peak)) if of_peak else None,
        "rounds_of_peak": [rounded(ratio) for ratio in of_peak],
        "refused": by_status.get("429", 0),
        "refusal_p99_ms": rounded(statistics.median(refusals_ms)) if refusals_ms else None,
        "expired": by_status.get("504", 0),
        "unanswered": sum(errors.values()),
        "by_status": by_status,
        "errors": errors,
        "mismatches": sum(probe["verified"]["mismatches"] for probe in above),
        "void": sum(probe["void"] for probe in above),
    }


def _total(probes: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for probe in probes:
        counts.update(probe[name])
    return dict(counts)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online.mixed", description=__doc__)
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="tabpfn-serve", help="started here, without --url")
    parser.add_argument("--url", help="a running server that is asked as --system is")
    parser.add_argument("--capacity", type=float, help="one-row requests per second; else what a closed loop gets")
    parser.add_argument("--share", type=float, default=0.4, help="of the capacity, that interactive callers ask for")
    parser.add_argument("--bulk-rows", type=int, default=1000, help="rows of a bulk request")
    parser.add_argument("--bulk-connections", type=int, default=2, help="bulk callers")
    parser.add_argument("--bulk-timeout", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5, help="of the mixed load; 0 leaves it out")
    parser.add_argument("--overload", type=float, default=2.0, help="times the capacity")
    parser.add_argument("--overload-rounds", type=int, default=5, help="of the overload; 0 leaves it out")
    parser.add_argument("--bound-ms", type=float, default=100.0, help="deadline of a request")
    parser.add_argument("--duration", type=float, default=8.0, help="seconds of each measurement")
    parser.add_argument("--warmup", type=float, default=2.0)
    parser.add_argument("--max-lag-ms", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nice", type=int, default=-10, help="of the generator, where it may be set")
    parser.add_argument("--processes", type=int, default=1, help="generator processes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the run here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    run = run_command(parser, given, lambda: run_mixed(given), (Refused, StartFailed, OSError))
    for part in ("mixed", "overload"):
        for name, value in (run[part] or {}).items():
            print(f"{part:8}  {name:32}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
