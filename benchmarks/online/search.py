"""The highest rate at which a running server keeps the p99 of the latency under a bound.

A search tries rates by open-loop probes, up and down in steps and then by halving. Rounds of whole probes then confirm
the rate that was found; a rate that does not stand is lowered and confirmed anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.command_line import command_parser
from benchmarks.machine import envelope
from benchmarks.online.bisection import SearchSettings, find_max_rate, tries_left
from benchmarks.online.closed_loop import answers_per_s
from benchmarks.online.command import (
    Run,
    above_zero,
    add_generator_options,
    add_run_options,
    add_server_options,
    at_least,
    not_negative,
    run_command,
)
from benchmarks.online.confirm import confirm
from benchmarks.online.evidence import requests_needed
from benchmarks.online.generator import Generator, raise_priority
from benchmarks.online.probe import Prober, ProbeSettings
from benchmarks.online.records import model_records
from benchmarks.online.target import Ready, describe_model, make_ready
from benchmarks.online.wire import native_wire
from benchmarks.percentiles import rounded
from benchmarks.progress import Progress

KIND = "online-search"
_CLOSED_LOOP_S = 2.0
_START_SHARE = 0.5
"""Share of a closed loop's rate that a batching server most likely keeps."""


async def run_search(given: argparse.Namespace) -> Run:
    """The whole search, as JSON has it. Raises BenchmarkError, OSError."""
    probing, searching = probe_settings(given), search_settings(given)
    run = envelope(
        KIND, {**dataclasses.asdict(probing), **dataclasses.asdict(searching), **vars(given)}, [], found=None
    )
    raise_priority(given.nice)
    ready = await _make_ready(given)
    start = given.start or _START_SHARE * await answers_per_s(ready.target, given.connections, _CLOSED_LOOP_S)
    async with Generator(given.processes) as generator:
        search = _Search(given, Prober(generator, ready.target, probing, ready.idle_ms), searching)
        rate = await find_max_rate(search.passes, start, searching)
        confirmed, rounds = await confirm(
            search.measure, rate, rounds=given.rounds, backoff=1 + searching.resolution / 2, tries=given.tries
        )
    run["results"] = search.prober.probes
    run["found"] = {
        "max_rate": rounded(confirmed),
        "bound_ms": probing.bound_ms,
        "searched_rate": rounded(rate),
        "start_rate": rounded(start),
        "requests_needed": requests_needed(0),
        "idle_ms": rounded(ready.idle_ms),
        "distinct_answers": ready.distinct_answers,
        "confirmation": rounds,
    }
    return run


async def _make_ready(given: argparse.Namespace) -> Ready:
    model = await describe_model(given.url, given.model)
    records = model_records(model, given.records, given.num_records, given.seed)
    return await make_ready(given.url, native_wire(given.model), records, given.tolerance)


class _Search:
    """The probes of one search, with a line of progress for each."""

    def __init__(self, given: argparse.Namespace, prober: Prober, settings: SearchSettings) -> None:
        self.prober, self._settings, self._rounds = prober, settings, given.rounds
        self._passed, self._failed = 0.0, math.inf
        self._progress = Progress(tries_left(0.0, math.inf, settings) + given.rounds, "probes")

    async def passes(self, rate: float) -> bool:
        """As `Prober.passes`."""
        passed = await self.prober.passes(rate)
        if passed:
            self._passed = max(self._passed, rate)
        else:
            self._failed = min(self._failed, rate)
        self._tell(tries_left(self._passed, self._failed, self._settings) + self._rounds)
        return passed

    async def measure(self, rate: float) -> dict[str, Any]:
        """As `Prober.measure`; one round of the confirmation."""
        probe = await self.prober.measure(rate)
        self._rounds = max(0, self._rounds - 1)
        self._tell(self._rounds)
        return probe

    def _tell(self, num_left: int) -> None:
        self._progress.expect(num_left)
        self._progress.step(line(self.prober.probes[-1]))


def line(probe: Mapping[str, Any]) -> str:
    """One probe for a terminal."""
    verdict = "void" if probe["void"] else "passed" if probe["passed"] else "failed"
    p99 = probe["latency"]["p99_ms"]
    return (
        f"{probe['rate']:.1f} requests/s {verdict}: {probe['late']} of {probe['scheduled']} late"
        f" ({probe['allowed_late']} allowed{', ended early' if probe['stopped_early'] else ''}),"
        f" p99 {'unknown' if p99 is None else f'{p99:.1f} ms'}"
    )


def add_probe_options(parser: argparse.ArgumentParser, defaults: ProbeSettings) -> None:
    """How each rate is tried; `probe_settings` reads it."""
    group = parser.add_argument_group("probes")
    group.add_argument(
        "--min-requests", type=at_least(1), default=defaults.min_requests, help="requests of a probe, within --max-s"
    )
    group.add_argument("--min-s", type=above_zero, default=defaults.min_s, help="shortest probe, in seconds")
    group.add_argument("--max-s", type=above_zero, default=defaults.max_s, help="longest probe, in seconds")
    group.add_argument(
        "--warmup-s", type=not_negative, default=defaults.warmup_s, help="seconds at the same rate before, not counted"
    )


def probe_settings(given: argparse.Namespace) -> ProbeSettings:
    """The settings that the options name; the others keep their defaults."""
    names = {field.name for field in dataclasses.fields(ProbeSettings)}
    return ProbeSettings(**{name: value for name, value in vars(given).items() if name in names})


def search_settings(given: argparse.Namespace) -> SearchSettings:
    """Raises UnusableInput for values that make no search."""
    names = {field.name for field in dataclasses.fields(SearchSettings)}
    return SearchSettings(**{name: value for name, value in vars(given).items() if name in names})


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    group, steps = parser.add_argument_group("search"), SearchSettings()
    group.add_argument(
        "--bound-ms", type=above_zero, default=ProbeSettings().bound_ms, help="latency that the p99 must keep"
    )
    group.add_argument(
        "--start", type=above_zero, help="first rate to try; without it half of the rate that a closed loop reaches"
    )
    group.add_argument("--step", type=above_zero, default=steps.step, help="factor by which the bracket grows")
    group.add_argument(
        "--resolution", type=above_zero, default=steps.resolution, help="fineness of the result, as a share of it"
    )
    group.add_argument("--low", type=above_zero, default=steps.low, help="lowest rate to try")
    group.add_argument("--high", type=above_zero, default=steps.high, help="highest rate to try")
    group.add_argument("--rounds", type=at_least(1), default=5, help="probes that confirm the result together")
    group.add_argument(
        "--tries", type=at_least(1), default=4, help="most rates to confirm, each a bit lower than the one before"
    )


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.search", __doc__)
    _add_search_options(parser)
    add_probe_options(parser, ProbeSettings())
    add_server_options(parser)
    add_generator_options(parser, timeout_s=ProbeSettings().timeout_s, timeout_flag="--timeout-s")
    add_run_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    run = run_command(parser, given, KIND, lambda: run_search(given))
    found = run["found"]
    for tried in found["confirmation"]:
        verdict = "confirmed" if tried["confirmed"] else "not confirmed"
        counts = f"{tried['late']} late of {tried['scheduled']} in {tried['rounds']} rounds"
        print(f"{tried['rate']:8.1f}/s  {verdict}: {counts}, {tried['allowed_late']} allowed")
    print(f"highest rate with p99 <= {found['bound_ms']:g} ms: {found['max_rate']:g}/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
