"""What a server costs beside the engine in it: `python -m benchmarks.online.overhead --help`.

In rounds, the server and the same engine in this process take turns, the server frozen (SIGSTOP) while the engine has
its turn. *Idle*: one-row requests one after the other, beside calls of one row. *Saturation*: so many callers at once,
each asking again as soon as it is answered, beside the engine on batches of the sizes that the server was seen to make.
Medians over the rounds; every answer is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import envelope
from benchmarks.online.client import Exchange
from benchmarks.online.command import run_command
from benchmarks.online.generator import Target, raise_priority
from benchmarks.online.in_process import STEPS, InProcess
from benchmarks.online.target import make_ready
from benchmarks.online.verify import Refused
from benchmarks.online.wire import difference, numbers
from benchmarks.peers.process import Process, StartFailed
from benchmarks.peers.records import Record, draw_transactions
from benchmarks.peers.systems import SYSTEMS
from benchmarks.percentiles import rounded

_OURS = ("tabpfn-serve", "tabpfn-serve-uvicorn")


@dataclass(frozen=True)
class Answered:
    """Of the answers to one-row requests within some seconds, what they say of their batches."""

    duration_s: float
    latency_ms: list[float]
    batch_rows: list[int]
    queue_ms: list[float]
    compute_ms: list[float]

    @property
    def rows_per_s(self) -> float:
        return len(self.batch_rows) / self.duration_s

    @property
    def num_batches(self) -> float:
        """A batch of n rows is told by n answers."""
        return sum(1 / rows for rows in self.batch_rows)

    @property
    def busy_share(self) -> float:
        """Of the time, that in which a batch was on the device."""
        busy_ms = sum(ms / rows for ms, rows in zip(self.compute_ms, self.batch_rows, strict=True))
        return busy_ms / 1e3 / self.duration_s

    def draw_batches(self, seed: int, most: int) -> list[int]:
        """Sizes of batches, each as often as it was seen."""
        weights = [1 / rows for rows in self.batch_rows]
        return random.Random(seed).choices(self.batch_rows, weights, k=most)


async def ask_repeatedly(target: Target, connections: int, duration_s: float) -> Answered:
    """So many callers for so long. Raises Refused where an answer is wrong or is none."""
    client = target.client(connections)
    await client.open()
    end = time.monotonic() + duration_s
    done: list[tuple[int, Exchange]] = []

    async def ask_again(first: int) -> None:
        number = first
        while time.monotonic() < end:
            chosen = number % len(target.requests)
            done.append((chosen, await client.ask(target.requests[chosen])))
            number += connections

    try:
        await asyncio.gather(*(ask_again(number) for number in range(connections)))
    finally:
        await client.close()
    return read_answers(
        target, [(number, exchange) for number, exchange in done if exchange.finished <= end], duration_s
    )


def read_answers(target: Target, done: Sequence[tuple[int, Exchange]], duration_s: float) -> Answered:
    """Raises Refused where one is wrong or is no answer."""
    answered = Answered(duration_s, [], [], [], [])
    for number, exchange in done:
        if exchange.status != 200:
            raise Refused(f"a request was answered {exchange.status}: {exchange.error or exchange.body[:300]!r}")
        answer = json.loads(exchange.body)
        expected = target.alone.get(number)
        if expected is not None and not difference(numbers(answer), expected) <= target.tolerance:
            raise Refused(f"record {number} was answered otherwise than alone")
        answered.latency_ms.append(exchange.latency_ms)
        answered.batch_rows.append(answer["batch_rows"])
        answered.queue_ms.append(answer["timing_ms"]["queue"])
        answered.compute_ms.append(answer["timing_ms"]["compute"])
    return answered


def idle_round(answered: Answered, engine_ms: Sequence[float]) -> dict[str, Any]:
    """One round of lone requests beside lone calls; medians, in milliseconds."""
    server, engine = statistics.median(answered.latency_ms), statistics.median(engine_ms)
    return {"server_ms": server, "engine_ms": engine, "added_ms": server - engine}


def saturated_round(answered: Answered, engine_rows_per_s: float) -> dict[str, Any]:
    """One round at saturation.

    A second of the server is divided into what the engine alone takes for these batches (`share`), what its batches
    take longer in the server, and what is between batches, when nothing is on the device.
    """
    share = answered.rows_per_s / engine_rows_per_s
    return {
        "rows_per_s": answered.rows_per_s,
        "engine_rows_per_s": engine_rows_per_s,
        "share": share,
        "slower_in_server": answered.busy_share - share,
        "between_batches": 1 - answered.busy_share,
        "mean_batch_rows": len(answered.batch_rows) / answered.num_batches,
        "p50_ms": statistics.median(answered.latency_ms),
        "queue_p50_ms": statistics.median(answered.queue_ms),
        "compute_p50_ms": statistics.median(answered.compute_ms),
    }


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of every number, over the rounds."""
    return {name: rounded(statistics.median(of[name] for of in rounds)) for name in rounds[0]}


class Bench:
    """The systems in turn with the engine in this process."""

    def __init__(self, given: argparse.Namespace, records: Sequence[Record], engine: InProcess) -> None:
        self._given, self._records, self._engine = given, records, engine
        self.results: list[dict[str, Any]] = []

    async def measure(self, name: str, folder: Path) -> dict[str, Any]:
        """One system from its start to its stop. Raises Refused, StartFailed, OSError."""
        given, system = self._given, SYSTEMS[name]
        process = system.process(given.threads, folder / f"{name}.log")
        try:
            await process.start(system.wire.request(f"127.0.0.1:{process.port}", [self._records[0]]))
            target = (await make_ready(process.url, system.wire, self._records, system.tolerance)).target
            idle, saturated = [], []
            for number in range(given.rounds):
                with _awake(process):
                    alone = await ask_repeatedly(target, 1, given.idle_s)
                idle.append(idle_round(alone, self._lone_calls(given.idle_s)))
                with _awake(process):
                    await ask_repeatedly(target, given.connections, given.warmup)
                    before_s = process.cpu_s()
                    crowd = await ask_repeatedly(target, given.connections, given.duration)
                    cpu_ms = 1e3 * (process.cpu_s() - before_s) / len(crowd.batch_rows)
                saturated.append(saturated_round(crowd, self._replay(crowd, number)) | {"cpu_ms_per_request": cpu_ms})
                self.results.append({"system": name, "round": number, "idle": idle[-1], "saturation": saturated[-1]})
                _tell(
                    f"{name}, round {number + 1}: one row {idle[-1]['added_ms']:.2f} ms more than the engine, "
                    f"{100 * saturated[-1]['share']:.0f} % of its rows at saturation"
                )
            return {"settings": system.settings, "idle": medians(idle), "saturation": medians(saturated)}
        finally:
            process.stop()

    def _lone_calls(self, duration_s: float) -> list[float]:
        """Milliseconds of calls of one row."""
        end, found = time.monotonic() + duration_s, []
        while time.monotonic() < end:
            found.append(1e3 * self._engine.compute(1))
        return found

    def _replay(self, answered: Answered, seed: int) -> float:
        """Rows per second of the engine alone, on batches of the sizes that were seen."""
        rows, seconds, end = 0, 0.0, time.monotonic() + self._given.duration
        for size in answered.draw_batches(seed, most=10_000):
            rows, seconds = rows + size, seconds + self._engine.compute(size)
            if time.monotonic() > end:
                break
        return rows / seconds

    def steps_ms(self) -> dict[str, float | None]:
        """Medians of the steps of one request that is alone, in this process."""
        times = [self._engine.steps(number) for number in range(self._given.step_calls)]
        return {
            step: rounded(1e3 * statistics.median(column))
            for step, column in zip(STEPS, zip(*times, strict=True), strict=True)
        }


@contextlib.contextmanager
def _awake(process: Process) -> Iterator[None]:
    process.thaw()
    try:
        yield
    finally:
        process.freeze()


async def run_overhead(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON. Raises Refused, StartFailed, OSError."""
    records = draw_transactions()
    bodies = [json.dumps({"records": [record]}).encode() for record in records]
    engine = InProcess(records, bodies, given.threads)
    raise_priority(given.nice)
    bench = Bench(given, records, engine)
    with tempfile.TemporaryDirectory() as folder:
        systems = {name: await bench.measure(name, Path(folder)) for name in given.systems}
    run = envelope("online-overhead", vars(given), bench.results, systems=systems, steps_ms=bench.steps_ms())
    engine.close()
    return run


def table(run: dict[str, Any]) -> str:
    """Lines for a terminal."""
    lines = []
    for name, found in run["systems"].items():
        for part in ("idle", "saturation"):
            lines += [f"{name:22}  {part:10}  {key:20}  {value:g}" for key, value in found[part].items()]
    return "\n".join(
        lines
        + [f"{'one request alone':22}  {'in process':10}  {k + ' ms':20}  {v:g}" for k, v in run["steps_ms"].items()]
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online.overhead", description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=_OURS, default=list(_OURS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64, help="callers at saturation")
    parser.add_argument("--idle-s", type=float, default=2.0, help="seconds of lone requests, and of lone calls")
    parser.add_argument(
        "--duration", type=float, default=4.0, help="seconds at saturation, and of the engine's batches"
    )
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds at saturation before, not counted")
    parser.add_argument("--step-calls", type=int, default=300, help="requests whose steps are timed in process")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the server and here")
    parser.add_argument("--nice", type=int, default=-10, help="of this process, where it may be set")
    parser.add_argument("--json", type=Path, help="write the run here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    run = run_command(parser, given, lambda: run_overhead(given), (Refused, StartFailed, OSError))
    print(table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
