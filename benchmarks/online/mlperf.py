"""MLPerf's LoadGen as a second, independent judge: `python -m benchmarks.online.mlperf --help`.

LoadGen draws the Poisson schedule, issues the queries, takes the times, from the scheduled one on, and gives the
verdict, with its own early-stopping statistic (scenario Server). Ours is what it calls the system under test: an HTTP
client that posts one query's record and reports its answer. A query that was not answered 200, or wrongly, is counted
here and makes the run invalid, since LoadGen judges times only.

The package is `mlcommons-loadgen`. Its log files are written to `--logs`; the summary is read from its detail log.
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

import mlperf_loadgen
import uvloop

from benchmarks.machine import envelope, write_json
from benchmarks.online.client import Client, Exchange
from benchmarks.online.generator import Target
from benchmarks.online.probe import WrongAnswers
from benchmarks.online.target import make_ready, model_records
from benchmarks.online.verify import Refused
from benchmarks.online.wire import difference, native_wire, read_numbers

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


class SystemUnderTest:
    """Posts queries from a loop in a thread of its own; LoadGen calls `issue` from its own thread."""

    def __init__(self, target: Target, connections: int, timeout_s: float) -> None:
        self.by_outcome: Counter[str] = Counter()
        self.mismatches = 0
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
        if self._client is not None:
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen at the scheduled time; must not wait."""
        self._loop.call_soon_threadsafe(self._send, [(sample.id, sample.index) for sample in samples])

    def flush(self) -> None:
        """Nothing is held back."""

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
        mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(identity, 0, 0)])


def loadgen_settings(rate: float, given: argparse.Namespace) -> Any:
    """LoadGen's settings for one rate."""
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = mlperf_loadgen.TestScenario.Server
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(given.bound_ms * 1e6)
    settings.server_target_latency_percentile = _PERCENTILE
    settings.min_duration_ms = int(given.duration * 1000)
    settings.max_duration_ms = int(given.max_duration * 1000)
    settings.min_query_count = given.min_queries
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = given.seed
    return settings


def judge(target: Target, rate: float, given: argparse.Namespace, logs: Path) -> dict[str, Any]:
    """One run of LoadGen at one rate, as JSON has it. Blocks for its duration."""
    system = SystemUnderTest(target, given.connections, given.timeout)
    system.start()
    sut = mlperf_loadgen.ConstructSUT(system.issue, system.flush)
    # the samples are in memory from the beginning: nothing to load
    qsl = mlperf_loadgen.ConstructQSL(len(target.requests), len(target.requests), lambda _: None, lambda _: None)
    try:
        mlperf_loadgen.StartTestWithLogSettings(sut, qsl, loadgen_settings(rate, given), _log_settings(logs))
    finally:
        mlperf_loadgen.DestroyQSL(qsl)
        mlperf_loadgen.DestroySUT(sut)
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


def _log_settings(logs: Path) -> Any:
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir = str(logs)
    output.copy_summary_to_stdout = False
    settings = mlperf_loadgen.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


def read_log(path: Path) -> dict[str, Any]:
    """What LoadGen's detail log (JSON after `:::MLLOG `) says of the result; latencies in ms."""
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


async def _target(given: argparse.Namespace) -> Target:
    records = await model_records(given.url, given.model, given.records, given.num_records, given.seed)
    ready = await make_ready(given.url, native_wire(given.model), records, given.tolerance)
    return ready.target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online.mlperf", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server, http://HOST:PORT")
    parser.add_argument("--model", default="fraud")
    parser.add_argument("--rate", type=float, nargs="+", required=True, metavar="PER_S", help="LoadGen's target_qps")
    parser.add_argument("--bound-ms", type=float, default=100.0, help="LoadGen's target latency, at p99")
    parser.add_argument("--duration", type=float, default=60.0, help="least seconds (MLPerf itself: 600)")
    parser.add_argument("--max-duration", type=float, default=300.0, help="most seconds")
    parser.add_argument("--min-queries", type=int, default=2000, help="least queries")
    parser.add_argument("--records", type=Path, help="JSON Lines or Parquet; else the model's example varied")
    parser.add_argument("--num-records", type=int, default=256)
    parser.add_argument("--tolerance", type=float, default=1e-6, help="largest difference from the answer given alone")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds after which a query is given up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="keep LoadGen's own log files here")
    parser.add_argument("--json", type=Path, help="write the run here")
    given = parser.parse_args(arguments)
    run = envelope("online-mlperf", vars(given), [])
    try:
        target = asyncio.run(_target(given))
        for rate in given.rate:
            with tempfile.TemporaryDirectory() as folder:
                logs = given.logs / f"{rate:g}" if given.logs else Path(folder)
                logs.mkdir(parents=True, exist_ok=True)
                run["results"].append(judge(target, rate, given, logs))
            print(_line(run["results"][-1]), flush=True)
    except (Refused, WrongAnswers, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if given.json:
        write_json(run, given.json)
    return 0 if all(result["valid"] for result in run["results"]) else 1


def _line(result: Mapping[str, Any]) -> str:
    return (
        f"{result['rate']:8.1f}/s  {'VALID' if result['valid'] else 'INVALID'}  LoadGen: {result['validity']}, "
        f"p99 {result['p99_ms']} ms, early stopping met: {result['early_stopping_met']}, {result['by_outcome']}"
    )


if __name__ == "__main__":
    sys.exit(main())
