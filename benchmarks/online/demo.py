"""The published load run, from nothing: starts the server with the demo model, offers the load, stops the server.

The load is `benchmarks.online.load` with its options, on card transactions that the demo model has not seen: another
seed than that of its context. The server is started on a free port and stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.command_line import command_parser
from benchmarks.online import load
from benchmarks.online.command import add_generator_options, add_run_options, add_tolerance
from benchmarks.online.errors import StartFailed
from training.cards import FEATURES, simulate

SEED = 1_001
NUM_RECORDS = 512
STOP_S = 60


def write_records(path: Path) -> None:
    """Unseen transactions as they come, with their true share of fraud, as JSON Lines."""
    rows = simulate(SEED, num_customers=500).sample(NUM_RECORDS, random_state=SEED)
    rows[list(FEATURES)].to_json(path, orient="records", lines=True)


@contextlib.contextmanager
def running_server(edge: str) -> Iterator[str]:
    """The URL of a server that is ready. Raises StartFailed if the server does not start or does not stop cleanly."""
    command = [sys.executable, "-m", "serve", edge, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            ready = next(filter(None, (re.search(r"ready at (\S+)", line) for line in server.stdout)), None)
            if ready is None:
                raise StartFailed(
                    f"`{' '.join(command[1:])}` ended with {server.wait()} before it was ready; see its output"
                )
            yield ready[1]
        finally:
            code = _stop(server)
    if code != 0:
        raise StartFailed(f"`{' '.join(command[1:])}` ended with {code} at SIGTERM instead of 0; see its output")


def _stop(server: subprocess.Popen[str]) -> int:
    """The exit status; a server that takes longer than `STOP_S` is killed."""
    server.send_signal(signal.SIGTERM)
    try:
        return server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def make_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = command_parser("benchmarks.online.demo", __doc__)
    parser.add_argument(
        "--edge",
        choices=("serve", "up"),
        default="serve",
        help="how the server runs: serve under Ray, up under uvicorn",
    )
    load.add_load_options(parser)
    add_tolerance(parser)
    add_generator_options(parser, timeout_s=30.0, nice=None)
    add_run_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    if given.from_json is not None:
        return load.finish(parser, given)
    try:
        with tempfile.TemporaryDirectory() as folder, running_server(given.edge) as url:
            records = Path(folder) / "cards.jsonl"
            write_records(records)
            given.url, given.model, given.records, given.num_records = url, "fraud", records, NUM_RECORDS
            return load.finish(parser, given)
    except StartFailed as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    raise SystemExit(main())
