"""Open-loop load on a running server: latency, goodput and batch sizes at one rate or at several.

Requests are due at times that are drawn before the run, and each is sent when it is due, however slow the server is.
The latency of a request counts from its due time, so a stall of the server cannot hide the requests that it kept
waiting.
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
from benchmarks.online.ceiling import measure_ceiling
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
from benchmarks.online.generator import Generator, Offer, raise_priority
from benchmarks.online.knee import knee, rising_rates, why_past_knee
from benchmarks.online.records import model_records
from benchmarks.online.summary import summarise_offer
from benchmarks.online.table import table
from benchmarks.online.tally import Tally
from benchmarks.online.target import Ready, describe_model, make_ready
from benchmarks.online.wire import native_wire
from benchmarks.percentiles import rounded
from benchmarks.progress import Progress

KIND = "online-load"


async def run_load(given: argparse.Namespace) -> Run:
    """Every rate in turn; the run as JSON has it. Raises BenchmarkError before any load."""
    run = envelope(KIND, vars(given), [], server=None, ceiling=None)
    raise_priority(given.nice)
    run["server"] = await describe_model(given.url, given.model, given.timeout)
    ready = await _make_ready(given, run["server"])
    run["server"].pop("example", None)
    results: list[dict[str, Any]] = run["results"]
    rates = rising_rates(given.rate, given.knee_factor, results) if given.until_knee else iter(given.rate)
    progress = Progress(len(given.rate), "rates")
    async with Generator(given.processes) as generator:
        if given.ceiling:
            run["ceiling"] = await measure_ceiling(generator, _offer(given, max(given.rate)), given.rows)
        for number, rate in enumerate(rates, start=1):
            offer = _offer(given, rate)
            seen = await generator.offer(ready.target, offer)
            results.append(summarise_load(seen, offer, ready, given.max_lag_ms, is_verified=given.verify))
            rises = given.until_knee and why_past_knee(results) is None
            progress.expect(max(0, len(given.rate) - number) + rises)
            progress.step(_line(results[-1]))
    if given.until_knee:
        run["knee"] = knee(results)
    return run


async def _make_ready(given: argparse.Namespace, model: Mapping[str, Any]) -> Ready:
    """Requests, and the answers to some of them alone. One is asked alone even unverified, to see that it is taken."""
    ready = await make_ready(
        given.url,
        native_wire(given.model),
        model_records(model, given.records, given.num_records, given.seed),
        given.tolerance,
        rows=given.rows,
        num_alone=given.verify_records if given.verify else 1,
        alone_s=math.inf,
        timeout_s=given.timeout,
    )
    return ready if given.verify else dataclasses.replace(ready, target=dataclasses.replace(ready.target, alone={}))


def _offer(given: argparse.Namespace, rate: float) -> Offer:
    return Offer(
        rate=rate,
        duration_s=given.duration,
        warmup_s=given.warmup,
        bound_ms=given.deadline_ms,
        arrivals=given.arrivals,
        seed=given.seed,
        connections=given.connections,
        max_connections=given.max_connections,
        timeout_s=given.timeout,
    )


def summarise_load(seen: Tally, offer: Offer, ready: Ready, max_lag_ms: float, *, is_verified: bool) -> dict[str, Any]:
    """One rate as JSON has it. A wrong answer makes it void, since it makes every other number worthless."""
    result = summarise_offer(seen, offer, max_lag_ms)
    result |= {
        "sent": seen.sent,
        "answered": seen.answered,
        "ok_per_s": rounded(seen.ok / offer.duration_s),
        **seen.answer_times.summary(),
        "lagged": result["void"],
        "connections": seen.connections,
    }
    if not is_verified:
        result["verified"] = None
        return result
    result["verified"] |= {"records": len(ready.target.alone), "distinct_answers": ready.distinct_answers}
    if seen.mismatches:
        result["void"] = True
        result["void_reasons"].append(
            f"{seen.mismatches} of {seen.compared} checked answers differ by more than {ready.target.tolerance:g} from "
            "the answer given alone"
        )
    return result


def _line(result: Mapping[str, Any]) -> str:
    p50, p99 = (result["latency"][name] for name in ("p50_ms", "p99_ms"))
    shown = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms" if p50 is not None else "no answer"
    void = f"; VOID: {'; '.join(result['void_reasons'])}" if result["void"] else ""
    return f"{result['rate']:g} requests/s: goodput {result['goodput_per_s']:.1f}/s, {shown}{void}"


def exit_status(run: Mapping[str, Any], allow_lag: bool) -> int:
    """1 where a rate is void; `allow_lag` pardons lag and nothing else.

    Lag at the last rate of a run with --until-knee is pardoned too: it is how such a run may end.
    """
    results = run["results"]
    is_pardoned = [allow_lag or ("knee" in run and result is results[-1]) for result in results]
    return int(
        any(
            result["void"] and not (pardoned and result["lagged"] and len(result["void_reasons"]) == 1)
            for result, pardoned in zip(results, is_pardoned, strict=True)
        )
    )


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """The rates, their length, and what is checked."""
    group = parser.add_argument_group("load")
    group.add_argument(
        "--rate",
        type=above_zero,
        nargs="+",
        default=[20.0],
        metavar="PER_S",
        help="offered requests per second; several rates are measured in turn",
    )
    group.add_argument(
        "--until-knee",
        action="store_true",
        help="after the given rates, raise the rate until goodput falls or falls behind the load",
    )
    group.add_argument("--knee-factor", type=above_zero, default=1.5, help="factor of each raise, above 1")
    group.add_argument("--duration", type=above_zero, default=20.0, help="seconds measured at each rate")
    group.add_argument("--warmup", type=not_negative, default=3.0, help="seconds at the same rate before, not counted")
    group.add_argument("--rows", type=at_least(1), default=1, help="records in one request")
    group.add_argument(
        "--deadline-ms", type=above_zero, default=100.0, help="an answer 200 within this time counts as goodput"
    )
    check = parser.add_argument_group("checks")
    check.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask some requests alone first, and compare every answer to them under load (on unless --no-verify)",
    )
    check.add_argument("--verify-records", type=at_least(1), default=64, help="requests that --verify asks alone")
    check.add_argument(
        "--allow-lag", action="store_true", help="exit 0 although a rate is void by lag; it stays marked as void"
    )
    check.add_argument(
        "--ceiling", action="store_true", help="first measure the load generator itself on a server that does nothing"
    )


def finish(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Measure, write, draw and print; the exit status."""
    if given.knee_factor <= 1:
        parser.error("--knee-factor must be above 1")
    run = run_command(parser, given, KIND, lambda: run_load(given))
    print(table(run))
    return exit_status(run, given.allow_lag)


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.load", __doc__)
    add_load_options(parser)
    add_server_options(parser)
    add_generator_options(parser, timeout_s=30.0, nice=None)
    add_run_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1 where a rate is void."""
    parser = make_parser()
    return finish(parser, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
