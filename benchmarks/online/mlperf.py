"""MLPerf's LoadGen as a second, independent judge of a running server.

LoadGen draws the Poisson schedule, issues the queries, takes the times from the scheduled moments on, and gives the
verdict with its own early-stopping statistic (scenario Server). What LoadGen calls the system under test is here an
HTTP client that posts one query's record and reports its answer. LoadGen judges times only, so this command counts the
queries that were refused, not answered or answered wrongly; one of them makes the run invalid.

The package is `mlcommons-loadgen`. Its log files are written to --logs; the results are read from its detail log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.command_line import command_parser
from benchmarks.machine import envelope
from benchmarks.online.client import Client, Exchange
from benchmarks.online.command import (
    Run,
    above_zero,
    add_run_options,
    add_server_options,
    at_least,
    run_command,
)
from benchmarks.online.errors import UnusableInput
from benchmarks.online.records import model_records
from benchmarks.online.target import Target, describe_model, make_ready
from benchmarks.online.wire import difference, native_wire, read_numbers
from benchmarks.progress import Progress

KIND = "online-mlperf"
_PERCENTILE = 0.99
_LOG = "mlperf_log_detail.txt"
_KEYS = {
    "result_validity": "validity",
    "result_scheduled_samples_per_sec": "scheduled_per_s",
    "result_completed_samples_per_sec": "completed_per_s",
    "result_50.00_percentile_latency_ns": "p50_ns",
    "result_99.00_percentile_latency_ns": "p99_ns",
    "early_stopping_met": "early_stopping_met",
    "result_query_count": "queries",
    "result_overlatency_query_count": "late",
    "result_perf_constraints_met": "bound_met",
}


async def run_mlperf(given: argparse.Namespace) -> Run:
    """One run of LoadGen at each rate, as JSON has it. Raises BenchmarkError, OSError."""
    _loadgen()
    run = envelope(KIND, vars(given), [])
    model = await describe_model(given.url, given.model)
    records = model_records(model, given.records, given.num_records, given.seed)
    ready = await make_ready(given.url, native_wire(given.model), records, given.tolerance)
    progress = Progress(len(given.rate), "rates")
    for rate in given.rate:
        progress.say(f"{rate:g} requests/s: LoadGen runs for {given.duration:g} to {given.max_duration:g} s")
        with tempfile.TemporaryDirectory() as folder:
            logs = given.logs / f"{rate:g}" if given.logs else Path(folder)
            logs.mkdir(parents=True, exist_ok=True)
            run["results"].append(await asyncio.to_thread(judge, ready.target, rate, given, logs))
        progress.step(_line(run["results"][-1]))
    return run


def _loadgen() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise UnusableInput("the package mlcommons-loadgen is missing: install it, or the extra `dev`") from error
    return mlperf_loadgen


class SystemUnderTest:
    """Posts queries from an event loop in a thread of its own; LoadGen calls `issue` from its own thread."""

    def __init__(self, target: Target, connections: int, timeout_s: float) -> None:
        self.by_outcome: Counter[str] = Counter()
        self.mismatches = 0
        self._loadgen = _loadgen()
        self._target, self._connections, self._timeout_s = target, connections, timeout_s
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="system under test", daemon=True)
        self._client: Client | None = None

    def start(self) -> None:
        """Connect. Raises OSError."""
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    async def _open(self) -> Client:
        client = self._target.client(self._connections, timeout_s=self._timeout_s)
        await client.open()
        return client

    def stop(self) -> None:
        """Disconnect and end the thread."""
        if self._client is not None:
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen at the scheduled time; returns at once."""
        self._loop.call_soon_threadsafe(self._send, [(sample.id, sample.index) for sample in samples])

    def flush(self) -> None:
        """Called by LoadGen at the end of the schedule; nothing is held back."""

    def _send(self, samples: Sequence[tuple[int, int]]) -> None:
        assert self._client is not None
        for identity, index in samples:
            exchange = Exchange(due=time.monotonic(), request=self._target.requests[index], record=index)
            exchange.answered = self._loop.create_future()
            exchange.answered.add_done_callback(lambda _, i=identity, e=exchange: self._complete(i, e))
            self._client.submit(exchange)

    def _complete(self, identity: int, exchange: Exchange) -> None:
        self.by_outcome[exchange.error or str(exchange.status)] += 1
        expected = self._target.alone.get(exchange.record)
        if exchange.status == 200 and expected is not None:
            self.mismatches += not difference(read_numbers(exchange.body), expected) <= self._target.tolerance
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(identity, 0, 0)])


def judge(target: Target, rate: float, given: argparse.Namespace, logs: Path) -> dict[str, Any]:
    """One run of LoadGen at one rate, as JSON has it. Blocks for its duration. Raises OSError."""
    loadgen = _loadgen()
    system = SystemUnderTest(target, given.connections, given.timeout)
    system.start()
    sut = loadgen.ConstructSUT(system.issue, system.flush)
    # all samples are in memory from the beginning, so loading and unloading do nothing
    qsl = loadgen.ConstructQSL(len(target.requests), len(target.requests), lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(sut, qsl, _test_settings(rate, given), _log_settings(logs))
    finally:
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
        system.stop()
    found = read_log(logs / _LOG)
    failed = sum(count for outcome, count in system.by_outcome.items() if outcome != "200")
    return {
        "rate": rate,
        "valid": found["validity"] == "VALID" and not failed and not system.mismatches,
        "by_outcome": dict(system.by_outcome),
        "mismatches": system.mismatches,
        **found,
    }


def _test_settings(rate: float, given: argparse.Namespace) -> Any:
    loadgen = _loadgen()
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(given.bound_ms * 1e6)
    settings.server_target_latency_percentile = _PERCENTILE
    settings.min_duration_ms = int(given.duration * 1000)
    settings.max_duration_ms = int(given.max_duration * 1000)
    settings.min_query_count = given.min_queries
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = given.seed
    return settings


def _log_settings(logs: Path) -> Any:
    loadgen = _loadgen()
    output = loadgen.LogOutputSettings()
    output.outdir = str(logs)
    output.copy_summary_to_stdout = False
    settings = loadgen.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


def read_log(path: Path) -> dict[str, Any]:
    """The results in LoadGen's detail log (JSON after `:::MLLOG `); latencies in ms, None for what it does not say."""
    said: dict[str, Any] = dict.fromkeys(_KEYS.values())
    for line in path.read_text(encoding="utf-8").splitlines():
        mark, _, content = line.partition(":::MLLOG ")
        if mark == "" and content:
            entry: Mapping[str, Any] = json.loads(content)
            if entry["key"] in _KEYS:
                said[_KEYS[entry["key"]]] = entry["value"]
    for name in ("p50", "p99"):
        nanoseconds = said.pop(f"{name}_ns")
        said[f"{name}_ms"] = None if nanoseconds is None else nanoseconds / 1e6
    return said


def _line(result: Mapping[str, Any]) -> str:
    verdict = "VALID" if result["valid"] else "INVALID"
    return (
        f"{result['rate']:g} requests/s {verdict}: LoadGen says {result['validity']}, p99 {result['p99_ms']} ms, "
        f"early stopping met: {result['early_stopping_met']}; outcomes {result['by_outcome']}, "
        f"{result['mismatches']} wrong answers"
    )


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.mlperf", __doc__)
    group = parser.add_argument_group("load")
    group.add_argument(
        "--rate", type=above_zero, nargs="+", default=[20.0], metavar="PER_S",
        help="requests per second, LoadGen's target_qps; several rates are judged in turn",
    )  # fmt: skip
    group.add_argument("--bound-ms", type=above_zero, default=100.0, help="LoadGen's target latency, at p99")
    group.add_argument(
        "--duration", type=above_zero, default=60.0, help="least seconds at a rate (MLPerf's own rules: 600)"
    )
    group.add_argument("--max-duration", type=above_zero, default=300.0, help="most seconds at a rate")
    group.add_argument("--min-queries", type=at_least(1), default=2000, help="least queries at a rate")
    group.add_argument("--connections", type=at_least(1), default=64, help="connections that are opened beforehand")
    group.add_argument(
        "--timeout", type=above_zero, default=10.0, help="seconds after which an unanswered query is given up"
    )
    group.add_argument("--seed", type=at_least(0), default=1, help="LoadGen's seed, of schedule and samples")
    group.add_argument("--logs", type=Path, metavar="FOLDER", help="keep LoadGen's own log files in this folder")
    add_server_options(parser)
    add_run_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1 where a rate is not valid."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    run = run_command(parser, given, KIND, lambda: run_mlperf(given))
    for result in run["results"]:
        print(_line(result))
    return 0 if all(result["valid"] for result in run["results"]) else 1


if __name__ == "__main__":
    sys.exit(main())
