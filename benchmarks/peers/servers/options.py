"""What every server is told. Imports nothing heavy: torch belongs into the one process that holds the model."""

from __future__ import annotations

import argparse
import os

ENGINE_VARIABLE, THREADS_VARIABLE = "PEER_ENGINE", "PEER_THREADS"
"""How the process that holds the model is told, whoever starts it."""

MAX_BATCH_ROWS = 256
"""As tabpfn-serve's default, for every peer that can be told."""


def read_options() -> argparse.Namespace:
    """`port`, `engine`, `threads`, `tuned`; engine and threads also go into the environment of later processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    os.environ[ENGINE_VARIABLE], os.environ[THREADS_VARIABLE] = options.engine, str(options.threads)
    return options
