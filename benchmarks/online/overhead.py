"""What a server costs beside the engine in it.

In rounds, the server and the same engine in this process take turns. The server is frozen (SIGSTOP) while the engine
has its turn. *Idle*: one-row requests one after the other, compared with calls of one row. *Saturation*: many callers
that each ask again as soon as they are answered, compared with the engine alone on batches of the sizes that the server
made.

Medians over the rounds are reported, and every answer is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.machine import envelope
from benchmarks.online.closed_loop import ask_repeatedly
from benchmarks.online.command import Run, above_zero, add_run_options, at_least, not_negative, run_command
from benchmarks.online.errors import Refused
from benchmarks.online.generator import raise_priority
from benchmarks.online.in_process import STEPS, InProcess
from benchmarks.online.saturation import Answered, idle_round, medians, read_answers, saturated_round
from benchmarks.online.target import Target, make_ready
from benchmarks.peers.process import Process
from benchmarks.peers.records import Record, draw_transactions
from benchmarks.peers.systems import SYSTEMS
from benchmarks.percentiles import rounded
from benchmarks.progress import Progress

KIND = "online-overhead"
_SYSTEMS = ("tabpfn-serve", "tabpfn-serve-uvicorn")


async def run_overhead(given: argparse.Namespace) -> Run:
    """Everything, as JSON has it. Raises BenchmarkError, OSError."""
    run = envelope(KIND, vars(given), [], systems={}, steps_ms=None)
    records = draw_transactions()
    bodies = [json.dumps({"records": [record]}).encode() for record in records]
    with contextlib.closing(InProcess(records, bodies, given.threads)) as engine:
        raise_priority(given.nice)
        bench = Bench(given, records, engine, run["results"])
        with tempfile.TemporaryDirectory() as folder:
            for name in given.systems:
                run["systems"][name] = await bench.measure(name, Path(folder))
        run["steps_ms"] = bench.steps_ms()
    return run


class Bench:
    """The systems in turn with the engine in this process; every round is kept in `results`."""

    def __init__(
        self, given: argparse.Namespace, records: Sequence[Record], engine: InProcess, results: list[dict[str, Any]]
    ) -> None:
        self._given, self._records, self._engine = given, records, engine
        self._results = results
        self._progress = Progress(given.rounds * len(given.systems), "rounds")

    async def measure(self, name: str, folder: Path) -> dict[str, Any]:
        """One system from its start to its stop. Raises BenchmarkError, OSError."""
        given, system = self._given, SYSTEMS[name]
        process = system.process(given.threads, folder / f"{name}.log")
        self._progress.say(f"starting {name}")
        try:
            await process.start(system.wire.request(f"127.0.0.1:{process.port}", [self._records[0]]))
            target = (await make_ready(process.url, system.wire, self._records, system.tolerance)).target
            rounds = []
            for number in range(given.rounds):
                rounds.append(await self._round(process, target, number))
                self._results.append({"system": name, "round": number, **rounds[-1]})
                idle, saturation = rounds[-1]["idle"], rounds[-1]["saturation"]
                self._progress.step(
                    f"{name}: one row takes {idle['added_ms']:.2f} ms more than the engine; at saturation the server "
                    f"delivers {100 * saturation['share']:.0f} % of the engine's rows"
                )
        finally:
            process.stop()
        parts = {part: medians([each[part] for each in rounds]) for part in ("idle", "saturation")}
        return {"settings": system.settings, **parts}

    async def _round(self, process: Process, target: Target, number: int) -> dict[str, Any]:
        given = self._given
        with _awake(process):
            alone = await _ask(target, 1, given.idle_s)
        idle = idle_round(alone, self._lone_calls(given.idle_s))
        with _awake(process):
            if given.warmup:
                read_answers(target, await ask_repeatedly(target, given.connections, given.warmup), given.warmup)
            before_s = process.cpu_s()
            crowd = await _ask(target, given.connections, given.duration)
            cpu_ms = 1e3 * (process.cpu_s() - before_s) / len(crowd.batch_rows)
        saturation = saturated_round(crowd, self._replay(crowd, number)) | {"cpu_ms_per_request": cpu_ms}
        return {"idle": idle, "saturation": saturation}

    def _lone_calls(self, duration_s: float) -> list[float]:
        """Milliseconds of calls of one row."""
        end, found = time.monotonic() + duration_s, []
        while time.monotonic() < end:
            found.append(1e3 * self._engine.compute(1))
        return found

    def _replay(self, answered: Answered, seed: int) -> float:
        """Rows per second of the engine alone, on batches of the sizes that the server made."""
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


async def _ask(target: Target, connections: int, duration_s: float) -> Answered:
    answered = read_answers(target, await ask_repeatedly(target, connections, duration_s), duration_s)
    if not answered.batch_rows:
        raise Refused(f"no request was answered within {duration_s:g} s: measure longer (--duration, --idle-s)")
    return answered


@contextlib.contextmanager
def _awake(process: Process) -> Iterator[None]:
    process.thaw()
    try:
        yield
    finally:
        process.freeze()


def table(run: Mapping[str, Any]) -> str:
    """A line for each number, for a terminal."""
    lines = []
    for name, found in run["systems"].items():
        for part in ("idle", "saturation"):
            lines += [f"{name:22}  {part:10}  {key:20}  {value:g}" for key, value in found[part].items()]
    lines += [f"{'one request alone':22}  {'in process':10}  {k + ' ms':20}  {v:g}" for k, v in run["steps_ms"].items()]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.overhead", __doc__)
    parser.add_argument(
        "--systems", nargs="+", choices=_SYSTEMS, default=list(_SYSTEMS), metavar="NAME",
        help=f"systems to start and measure, of: {', '.join(_SYSTEMS)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=at_least(1), default=5, help="rounds per system; medians are reported")
    parser.add_argument("--connections", type=at_least(1), default=64, help="callers at saturation")
    parser.add_argument(
        "--idle-s", type=above_zero, default=2.0, help="seconds of lone requests, and of lone calls of the engine"
    )
    parser.add_argument(
        "--duration", type=above_zero, default=4.0, help="seconds at saturation, and of the engine's batches"
    )
    parser.add_argument(
        "--warmup", type=not_negative, default=1.0, help="seconds at saturation before each measurement, not counted"
    )
    parser.add_argument(
        "--step-calls", type=at_least(1), default=300, help="requests whose steps are timed in this process"
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="torch threads, of the server and of the engine here"
    )
    parser.add_argument(
        "--nice", type=int, default=-10, help="nice value of this process, where the system lets it be set"
    )
    add_run_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    print(table(run_command(parser, given, KIND, lambda: run_overhead(given))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
