"""The server in front of a simulated GPU, and other servers in front of the same one.

Every system has the demo model, its real encoder and its real preparation of rows on the host. In place of the forward
pass there is a device that takes a fixed time for a batch and a time for each row. So the run says what a server makes
of a device that is much faster than this machine: how many rows it delivers, and how long the device waits for it. It
says nothing of how fast a real GPU computes.

Callers ask again as soon as they are answered (a closed loop). They run on the same cores as the systems; their CPU
time is in the JSON. Systems that have no turn are frozen (SIGSTOP). Every answer is compared with the answer alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.machine import envelope, write_json
from benchmarks.online.client import Exchange
from benchmarks.online.closed_loop import ask_repeatedly
from benchmarks.online.command import Run, above_zero, add_run_options, at_least, not_negative, run_command
from benchmarks.online.errors import BenchmarkError, Refused, StartFailed, WrongAnswers
from benchmarks.online.generator import raise_priority
from benchmarks.online.gpu_like_device import Notes, SimulatedDevice, count_batches, idle_share, read_notes
from benchmarks.online.target import Target, describe_outcome, make_ready
from benchmarks.online.wire import difference, native_wire, read_numbers
from benchmarks.peers import environments
from benchmarks.peers.process import Process, free_port, stop_at_sigterm
from benchmarks.peers.records import draw_transactions
from benchmarks.peers.servers.options import GPU_LIKE, MAX_BATCH_ROWS
from benchmarks.peers.systems import COMPILED, SYSTEMS, System
from benchmarks.percentiles import rounded, summarise
from benchmarks.progress import Progress

KIND = "online-gpu-like"
PEERS = ("mosec", "litserve", "ray-serve-tuned")
_SERVER = System(
    "tabpfn-serve",
    COMPILED,
    ("-m", "benchmarks.online.gpu_like_server", "--port", "{port}"),
    "defaults; uvicorn",
    wire=native_wire("fraud"),
)


def server(num_fronts: int) -> System:
    """The server with so many fronts; one is in the process of the batcher."""
    if num_fronts == 1:
        return _SERVER
    command = (*_SERVER.command, "--fronts", str(num_fronts))
    name = f"{_SERVER.name}-{num_fronts}-fronts"
    return dataclasses.replace(_SERVER, name=name, command=command, settings=f"{num_fronts} front processes; uvicorn")


def peer(name: str) -> System:
    """The peer as `benchmarks.peers` runs it with the compiled engine, with the simulated GPU in that engine."""
    system = SYSTEMS[f"{name}-compiled-engine"]
    command = tuple(GPU_LIKE if part == COMPILED else part for part in system.command)
    return dataclasses.replace(system, name=name, command=command)


async def run_gpu_like(given: argparse.Namespace) -> Run:
    """The whole run, as JSON has it; written after every measurement, too.

    Raises BenchmarkError, OSError; a system that fails is an error only where no other has a result.
    """
    device = SimulatedDevice(given.fixed_ms, given.per_row_us)
    fronts = {server(number).name: number for number in given.fronts}
    systems = [*map(server, fronts.values()), *(peer(name) for name in given.peers)]
    settings = {system.name: {"settings": system.settings, "versions": system.versions} for system in systems}
    run = envelope(KIND, vars(given), [], device=dataclasses.asdict(device), systems=settings, failures={})
    for system in systems:
        if system.environment is not None:
            print(f"installing the environment of {system.name}, unless it is there", file=sys.stderr, flush=True)
            environments.install(system.environment)
    raise_priority(given.nice)
    with tempfile.TemporaryDirectory() as folder:
        contestants = [
            Contestant(system, device, given, Path(folder), fronts.get(system.name, 1)) for system in systems
        ]
        try:
            await _take_turns(contestants, given, run)
        finally:
            for contestant in contestants:
                contestant.process.stop()
    if not run["results"]:
        raise StartFailed("; ".join(f"{name}: {why}" for name, why in run["failures"].items()))
    return run


async def _take_turns(contestants: Sequence[Contestant], given: argparse.Namespace, run: Run) -> None:
    """Start every system, then measure them in turn at each number of callers. A failure ends one system's part."""
    progress = Progress(len(contestants) * (1 + len(given.callers)), "steps")
    for num_callers in (None, *given.callers):
        for contestant in contestants:
            name = contestant.system.name
            if name in run["failures"]:
                continue
            try:
                if num_callers is None:
                    await contestant.start()
                    progress.step(f"{name} has started")
                else:
                    run["results"].append(await contestant.measure(num_callers))
                    progress.step(_line(run["results"][-1]))
            except (BenchmarkError, OSError) as error:
                contestant.process.stop()
                run["failures"][name] = f"{type(error).__name__}: {error}"
            if given.json is not None:
                write_json(run, given.json)


class Contestant:
    """One system in front of a simulated GPU of its own. Whoever starts it must stop its `process`."""

    def __init__(
        self, system: System, device: SimulatedDevice, given: argparse.Namespace, folder: Path, num_fronts: int
    ) -> None:
        port = free_port()
        self.system = system
        self._device, self._given, self._num_fronts = device, given, num_fronts
        self._notes = folder / f"{system.name}.notes"
        self.process = Process(
            system.name,
            system.arguments(port, 1),
            {**system.environment_variables(1), **device.to_variable(self._notes)},
            port,
            folder / f"{system.name}.log",
            stop_signal=system.stop_signal,
        )
        self._target: Target | None = None

    async def start(self) -> None:
        """Start it, ask each request alone, and freeze it. Raises BenchmarkError, OSError."""
        records, wire = draw_transactions(), self.system.wire
        await self.process.start(wire.request(f"127.0.0.1:{self.process.port}", [records[0]]))
        ready = await make_ready(self.process.url, wire, records, self.system.tolerance, rows=self._given.rows)
        self._target = ready.target
        self.process.freeze()

    async def measure(self, num_callers: int) -> dict[str, Any]:
        """One entry of the results. Raises BenchmarkError, OSError."""
        target, duration_s = self._target, self._given.duration
        assert target is not None, "this is a bug: it has not started"
        self.process.thaw()
        if self._given.warmup:
            await ask_repeatedly(target, num_callers, self._given.warmup)
        cpu_before, own_before = self._cpu_s_by_process(), time.process_time()
        ended = await ask_repeatedly(target, num_callers, duration_s)
        own_s, cpu_after = time.process_time() - own_before, self._cpu_s_by_process()
        self.process.freeze()
        check_answers(target, ended)
        if not ended:
            raise Refused(f"no request was answered within {duration_s:g} s: measure longer (--duration)")
        spent = {pid: seconds - cpu_before.get(pid, 0.0) for pid, seconds in cpu_after.items()}
        notes = read_notes(self._notes)
        core = self.process.pid if self._num_fronts > 1 else None
        return {
            "system": self.system.name,
            "fronts": self._num_fronts,
            "callers": num_callers,
            "rows": self._given.rows,
            **summary(ended, duration_s, self._given.rows, self._device, notes),
            "cpu_ms_per_request": cpu_by_part(spent, int(notes["pid"][-1]), len(ended), core),
            "callers_cpu_ms_per_request": rounded(1e3 * own_s / len(ended)),
        }

    def _cpu_s_by_process(self) -> dict[int, float]:
        return {member.pid: sum(member.cpu_times()[:2]) for member in self.process.members()}


def check_answers(target: Target, ended: Sequence[Exchange]) -> None:
    """Raises Refused for an answer other than 200, WrongAnswers for one that differs from the answer alone."""
    for exchange in ended:
        if exchange.status != 200:
            raise Refused(f"a request was answered {describe_outcome(exchange)}")
        expected = target.alone.get(exchange.record)
        if expected is not None and not difference(read_numbers(exchange.body), expected) <= target.tolerance:
            raise WrongAnswers(f"request {exchange.record} was answered otherwise than alone")


def summary(
    ended: Sequence[Exchange], duration_s: float, rows: int, device: SimulatedDevice, notes: Notes
) -> dict[str, Any]:
    """What the answers to requests of `rows` rows, and the notes of the device, say of `duration_s` seconds."""
    begin = min(exchange.due for exchange in ended)
    end = begin + duration_s
    latency = summarise([exchange.latency_ms for exchange in ended])
    rows_per_s = rows * len(ended) / duration_s
    num_batches = count_batches(notes, begin, end)
    return {
        "rate": rounded(len(ended) / duration_s),
        "p50_ms": latency["p50_ms"],
        "p99_ms": latency["p99_ms"],
        "p99_reliable": latency["p99_reliable"],
        "device_idle_share": rounded(idle_share(notes, begin, end), 4),
        "rows_per_s": rounded(rows_per_s),
        "share_of_full_batches": rounded(rows_per_s / device.rows_per_s(MAX_BATCH_ROWS), 4),
        "mean_batch_rows": rounded(rows * len(ended) / num_batches) if num_batches else None,
    }


def cpu_by_part(
    spent_s: Mapping[int, float], engine: int, num_requests: int, core: int | None = None
) -> dict[str, float | None]:
    """CPU time for a request, in ms: of the process that holds the device, of the core, and of all others, the front.

    Where no process between the two is the core alone, `core` is None and the front's process does that work.
    """
    front_s = sum(seconds for pid, seconds in spent_s.items() if pid not in (engine, core))
    return {
        "front": rounded(1e3 * front_s / num_requests),
        "core": None if core is None else rounded(1e3 * spent_s.get(core, 0.0) / num_requests),
        "engine": rounded(1e3 * spent_s.get(engine, 0.0) / num_requests),
    }


def _line(found: Mapping[str, Any]) -> str:
    cpu = found["cpu_ms_per_request"]
    core = "" if cpu["core"] is None else f"core {cpu['core']:.3f} ms, "
    return (
        f"{found['system']}, {found['callers']} callers: {found['rate']:.0f} requests/s, p50 {found['p50_ms']:.1f} ms, "
        f"p99 {found['p99_ms']:.1f} ms, device idle {100 * found['device_idle_share']:.0f} %, "
        f"CPU front {cpu['front']:.3f} ms, {core}engine {cpu['engine']:.3f} ms"
    )


def table(run: Mapping[str, Any]) -> str:
    """A line for each result and each failure."""
    device = run["device"]
    lines = [f"simulated GPU: {device['fixed_ms']:g} ms + {device['per_row_us']:g} us a row; no real device computed"]
    lines += [_line(found) for found in run["results"]]
    return "\n".join([*lines, *(f"{name} FAILED: {why}" for name, why in run["failures"].items())])


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.gpu_like", __doc__)
    default = SimulatedDevice()
    parser.add_argument(
        "--fronts", nargs="+", type=at_least(1), default=[1], metavar="COUNT",
        help="numbers of processes that read requests, one after the other; 1 reads in the process of the batcher",
    )  # fmt: skip
    parser.add_argument(
        "--callers", nargs="+", type=at_least(1), default=[16, 64, 256], metavar="COUNT",
        help="numbers of callers, one after the other",
    )  # fmt: skip
    parser.add_argument("--rows", type=at_least(1), default=1, help="rows of each request; 8 fill the device")
    parser.add_argument("--duration", type=above_zero, default=8.0, help="seconds of each measurement")
    parser.add_argument(
        "--warmup", type=not_negative, default=1.0, help="seconds of load before each measurement, not counted"
    )
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=[], metavar="NAME",
        help=f"other servers in front of the same device, of: {', '.join(PEERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--fixed-ms", type=not_negative, default=default.fixed_ms, help="time of the device for a batch"
    )
    parser.add_argument(
        "--per-row-us", type=above_zero, default=default.per_row_us, help="time of the device for each row, beside that"
    )
    parser.add_argument(
        "--nice", type=int, default=-10, help="nice value of the callers, where the system lets it be set"
    )
    add_run_options(parser, "after every measurement")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1 where a system failed."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    stop_at_sigterm()
    run = run_command(parser, given, KIND, lambda: run_gpu_like(given))
    print(table(run))
    return 1 if run["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
