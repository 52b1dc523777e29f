"""The README's load run, from nothing: `python -m benchmarks.online.demo --edge serve --rate 10 20 --json FILE`.

Starts the server on a free port (`--edge serve`: Ray, `up`: uvicorn), draws card transactions that the demo model has
not seen (another seed than its context), offers them with `benchmarks.online.load`, and stops the server by SIGTERM.
Every other argument is handed to `benchmarks.online.load`.
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

from benchmarks.online import load
from training.cards import FEATURES, simulate

SEED = 1_001
NUM_RECORDS = 512
STOP_S = 60


def write_records(path: Path) -> None:
    """Unseen transactions as they come, with their true share of fraud; JSON Lines."""
    rows = simulate(SEED, num_customers=500).sample(NUM_RECORDS, random_state=SEED)
    rows[list(FEATURES)].to_json(path, orient="records", lines=True)


@contextlib.contextmanager
def running_server(edge: str) -> Iterator[str]:
    """The URL of a server that is ready. Raises RuntimeError if it does not start or does not stop cleanly."""
    command = [sys.executable, "-m", "serve", edge, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = re.search(r"ready at (\S+)", server.stdout.readline())
        if ready is None:
            raise RuntimeError(f"{' '.join(command)} did not become ready: exit code {server.wait()}")
        try:
            yield ready[1]
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(STOP_S)
    if code != 0:
        raise RuntimeError(f"the server ended with {code}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", choices=("serve", "up"), default="serve")
    given, rest = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder, running_server(given.edge) as url:
        records = Path(folder) / "cards.jsonl"
        write_records(records)
        return load.main(["--url", url, "--records", str(records), "--num-records", str(NUM_RECORDS), *rest])


if __name__ == "__main__":
    raise SystemExit(main())
