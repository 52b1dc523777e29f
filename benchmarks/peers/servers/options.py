"""The options of every server. Imports nothing heavy: only the one process that holds the model loads torch."""

from __future__ import annotations

import argparse
import os

ENGINE_VARIABLE, THREADS_VARIABLE = "PEER_ENGINE", "PEER_THREADS"
"""Environment variables: the engine and the threads of the process that holds the model."""

GPU_LIKE = "gpu-like"
"""The kind of engine that `benchmarks.online.gpu_like` gives to a peer."""

MAX_BATCH_ROWS = 256
"""The default of tabpfn-serve, for every peer that has such a setting."""


def read_options() -> argparse.Namespace:
    """`port`, `engine`, `threads`, `tuned`. Engine and threads also go into the environment of later processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--engine", required=True, help="a kind of benchmarks.peers.models, such as compiled or tabpfn")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--tuned", action="store_true", help="Ray Serve only: its settings for throughput")
    options = parser.parse_args()
    os.environ[ENGINE_VARIABLE], os.environ[THREADS_VARIABLE] = options.engine, str(options.threads)
    return options
