"""How a command of these ends: with a run, written down where it was asked for, or with one line and exit status 2."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from benchmarks.machine import write_json


def run_command(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    measure: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    errors: tuple[type[Exception], ...],
) -> dict[str, Any]:
    """What `measure` finds, written to `given.json` if that is set; `errors` are for whoever called the command."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            run = runner.run(measure())
    except errors as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if given.json:
        write_json(run, given.json)
    return run
