"""What the online commands share: their options, and how a command ends.

A command ends with a run, which is written and drawn where the options say so, or with one line on stderr and status 2.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.command_line import add_outputs, check_outputs, read_run, write_outputs
from benchmarks.online.arrivals import ARRIVALS
from benchmarks.online.errors import BenchmarkError, UnusableInput
from benchmarks.online.target import parse_url

Run = dict[str, Any]


def above_zero(text: str) -> float:
    """A number above 0, for `type=`."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def not_negative(text: str) -> float:
    """A number of at least 0, for `type=`."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def at_least(least: int) -> Callable[[str], int]:
    """Whole numbers of at least `least`, for `type=`."""

    def whole_number(text: str) -> int:
        number = _number(text)
        if not (number >= least and number.is_integer()):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")
        return int(number)

    return whole_number


def server_url(text: str) -> str:
    """`http://HOST[:PORT]`, for `type=`."""
    try:
        parse_url(text)
    except UnusableInput:
        raise argparse.ArgumentTypeError(f"{text} is not http://HOST[:PORT]") from None
    return text


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """A running server, its model, and what is posted to it."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url", type=server_url, default="http://127.0.0.1:8080", help="the running server, http://HOST:PORT"
    )
    group.add_argument("--model", default="fraud", help="the model to ask; GET /v1/models lists them")
    group.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help="post the records of this file (.csv with a header, .jsonl or .parquet); without it the model's example "
        "is posted with its numbers varied",
    )
    group.add_argument("--num-records", type=at_least(1), default=256, help="different records to post")
    add_tolerance(group)


def add_tolerance(group: argparse._ActionsContainer) -> None:
    """How far an answer under load may differ."""
    group.add_argument(
        "--tolerance",
        type=not_negative,
        default=1e-6,
        help="largest difference between a number answered under load and the one answered alone",
    )


def add_generator_options(
    parser: argparse.ArgumentParser, *, timeout_s: float, timeout_flag: str = "--timeout", nice: int | None = -10
) -> None:
    """How the load is generated at every rate."""
    group = parser.add_argument_group("load generator")
    group.add_argument(
        "--arrivals",
        choices=tuple(ARRIVALS),
        default="poisson",
        help="bursty offers four times the rate a tenth of the time, and the same rate on average",
    )
    group.add_argument("--seed", type=at_least(0), default=1, help="seed of the arrivals and of the records' order")
    group.add_argument("--connections", type=at_least(1), default=64, help="connections that are opened beforehand")
    group.add_argument(
        "--max-connections",
        type=at_least(1),
        default=1024,
        help="more connections are opened on demand, up to this number, so that the load stays open",
    )
    group.add_argument(
        timeout_flag, type=above_zero, default=timeout_s, help="seconds after which an unanswered request is given up"
    )
    add_process_options(group, nice)


def add_process_options(group: argparse._ActionsContainer, nice: int | None = -10) -> None:
    """Processes of the generator, their priority and their punctuality."""
    group.add_argument(
        "--max-lag-ms",
        type=above_zero,
        default=10.0,
        help="a rate is void if the p99 of the send lag passes this or half of the median latency (at least 2 ms)",
    )
    group.add_argument("--processes", type=at_least(1), default=1, help="generator processes that share the load")
    group.add_argument(
        "--nice", type=int, default=nice, help="nice value of the generator, where the system lets it be set"
    )


def add_run_options(parser: argparse.ArgumentParser, when: str = "at the end of the run") -> None:
    """Where the run goes, and the run that is drawn again."""
    add_outputs(parser, when)
    parser.add_argument(
        "--from-json",
        type=Path,
        metavar="FILE",
        help="measure nothing: print (and with --plot draw) the run in this file, which an earlier --json wrote",
    )


def run_command(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    kind: str,
    measure: Callable[[], Coroutine[Any, Any, Run]],
) -> Run:
    """The run that `measure` makes, or that of `--from-json`; written to `--json` and drawn to `--plot`.

    Ends the process with status 2 and one line where there is none.
    """
    check_outputs(parser, given.json, given.plot)
    try:
        if given.from_json is not None:
            run = _read(given.from_json, kind)
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                run = runner.run(measure())
    except (BenchmarkError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    write_outputs(run, given.json, given.plot)
    return run


def _read(path: Path, kind: str) -> Run:
    try:
        run = read_run(path)
    except ValueError as error:
        raise UnusableInput(str(error)) from error
    if run["kind"] != kind:
        raise UnusableInput(f"{path} holds a run of kind {run['kind']}, and this command reads runs of kind {kind}")
    return run
