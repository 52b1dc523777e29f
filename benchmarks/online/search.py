"""The highest rate at which a running server keeps p99 under a bound: `python -m benchmarks.online.search --help`.

Steps and bisection on open-loop probes (`probe.py`), then rounds that confirm what was found (`confirm.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import envelope
from benchmarks.online.arrivals import ARRIVALS
from benchmarks.online.bisection import SearchSettings, find_max_rate
from benchmarks.online.command import run_command
from benchmarks.online.confirm import confirm
from benchmarks.online.evidence import requests_needed
from benchmarks.online.generator import Generator, raise_priority
from benchmarks.online.probe import Prober, ProbeSettings, Unsettled, WrongAnswers
from benchmarks.online.target import Ready, closed_loop, make_ready, model_records
from benchmarks.online.verify import Refused
from benchmarks.online.wire import native_wire
from benchmarks.percentiles import rounded

_CLOSED_LOOP_S = 2.0
_START_SHARE = 0.5
"""Of what a closed loop gets: a rate that a batching server most likely keeps."""


async def run_search(given: argparse.Namespace) -> dict[str, Any]:
    """The whole search as JSON. Raises Refused, WrongAnswers, Unsettled, OSError, ValueError."""
    probing, searching = probe_settings(given), search_settings(given)
    raise_priority(given.nice)
    ready = await _ready(given)
    start = given.start or _START_SHARE * await closed_loop(ready.target, given.connections, _CLOSED_LOOP_S)
    async with Generator(given.processes) as generator:
        prober = Prober(generator, ready.target, probing, ready.idle_ms)
        rate = await find_max_rate(_told(prober), start, searching)
        confirmed, rounds = await confirm(
            prober.measure, rate, rounds=given.rounds, backoff=1 + searching.resolution / 2, tries=given.tries
        )
    config = {**dataclasses.asdict(probing), **dataclasses.asdict(searching), **vars(given)}
    found = {
        "max_rate": rounded(confirmed),
        "bound_ms": probing.bound_ms,
        "searched_rate": rounded(rate),
        "start_rate": rounded(start),
        "requests_needed": requests_needed(0),
        "idle_ms": rounded(ready.idle_ms),
        "distinct_answers": ready.distinct_answers,
        "confirmation": rounds,
    }
    return envelope("online-search", config, prober.probes, found=found)


async def _ready(given: argparse.Namespace) -> Ready:
    records = await model_records(given.url, given.model, given.records, given.num_records, given.seed)
    return await make_ready(given.url, native_wire(given.model), records, given.tolerance)


def _told(prober: Prober) -> Any:
    async def passes(rate: float) -> bool:
        passed = await prober.passes(rate)
        print(line(prober.probes[-1]), file=sys.stderr, flush=True)
        return passed

    return passes


def line(probe: Mapping[str, Any]) -> str:
    """One probe for a terminal."""
    verdict = "void" if probe["void"] else "passed" if probe["passed"] else "failed"
    p99 = probe["latency"]["p99_ms"]
    return (
        f"{probe['rate']:8.1f}/s  {verdict:6}  late {probe['late']} of {probe['scheduled']}"
        f" (allowed {probe['allowed_late']}{', broken off' if probe['stopped_early'] else ''})"
        f"  p99 {'-' if p99 is None else f'{p99:.1f}'} ms"
    )


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `ProbeSettings` and `SearchSettings`."""
    defaults = ProbeSettings()
    probe = parser.add_argument_group("probes")
    probe.add_argument("--bound-ms", type=float, default=defaults.bound_ms, help="latency that p99 must keep")
    probe.add_argument("--min-requests", type=int, default=defaults.min_requests, help="requests of a probe")
    probe.add_argument("--min-s", type=float, default=defaults.min_s, help="shortest probe, in seconds")
    probe.add_argument("--max-s", type=float, default=defaults.max_s, help="longest probe, in seconds")
    probe.add_argument("--warmup-s", type=float, default=defaults.warmup_s, help="at the same rate, not counted")
    probe.add_argument("--arrivals", choices=tuple(ARRIVALS), default=defaults.arrivals)
    probe.add_argument("--seed", type=int, default=defaults.seed, help="of the arrivals; each probe adds its number")
    probe.add_argument("--connections", type=int, default=defaults.connections)
    probe.add_argument("--max-lag-ms", type=float, default=defaults.max_lag_ms, help="as in benchmarks.online.load")
    probe.add_argument("--nice", type=int, default=-10, help="of the generator, where it may be set")
    probe.add_argument("--processes", type=int, default=1, help="generator processes that share the load")
    search = parser.add_argument_group("search")
    steps = SearchSettings()
    search.add_argument("--step", type=float, default=steps.step, help="factor by which the bracket grows")
    search.add_argument("--resolution", type=float, default=steps.resolution, help="of the result, as a share of it")
    search.add_argument("--low", type=float, default=steps.low, help="lowest rate that is tried")
    search.add_argument("--high", type=float, default=steps.high, help="highest rate that is tried")


def probe_settings(given: argparse.Namespace) -> ProbeSettings:
    names = {field.name for field in dataclasses.fields(ProbeSettings)}
    return ProbeSettings(**{name: value for name, value in vars(given).items() if name in names})


def search_settings(given: argparse.Namespace) -> SearchSettings:
    """Raises ValueError for what makes no sense."""
    names = {field.name for field in dataclasses.fields(SearchSettings)}
    return SearchSettings(**{name: value for name, value in vars(given).items() if name in names})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online.search", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server, http://HOST:PORT")
    parser.add_argument("--model", default="fraud", help="the model to ask")
    parser.add_argument("--records", type=Path, help="JSON Lines or Parquet; else the model's example varied")
    parser.add_argument("--num-records", type=int, default=256)
    parser.add_argument("--tolerance", type=float, default=1e-6, help="largest difference from the answer given alone")
    parser.add_argument("--start", type=float, help="first rate; else half of what a closed loop gets")
    parser.add_argument("--rounds", type=int, default=5, help="confirmation rounds")
    parser.add_argument("--tries", type=int, default=4, help="rates that are tried for confirmation, each a bit lower")
    parser.add_argument("--json", type=Path, help="write the run here")
    parser.add_argument("--plot", type=Path, help="draw it here (PNG)")
    add_probe_arguments(parser)
    given = parser.parse_args(arguments)
    run = run_command(parser, given, lambda: run_search(given), (Refused, WrongAnswers, Unsettled, OSError, ValueError))
    if given.plot:
        from benchmarks.report import plot

        plot(run, given.plot)
    for tried in run["found"]["confirmation"]:
        verdict = "confirmed" if tried["confirmed"] else "not confirmed"
        counts = f"{tried['late']} late of {tried['scheduled']} in {tried['rounds']} rounds"
        print(f"{tried['rate']:8.1f}/s  {verdict}: {counts}, {tried['allowed_late']} allowed")
    print(f"highest rate with p99 <= {given.bound_ms:g} ms: {run['found']['max_rate']:g}/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
