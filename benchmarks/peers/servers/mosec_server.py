"""mosec with dynamic batching (mosecorg.github.io): a Rust front and one Python worker.

`max_wait_time` is 1 ms, the least that mosec takes (0 means its default, 10): the front collects while the worker is
busy in any case. msgspec reads and writes JSON in the documented hooks, faster than the default `json` with its
indented answers. The time-out is raised from 3 to 30 s, so that it does not end the warm-up. The capacity of 1,024 is
the default.
"""

import sys
from typing import Any

import msgspec
from mosec import Server, Worker

from benchmarks.peers.servers.options import MAX_BATCH_ROWS, read_options

Records = list[dict[str, Any]]


class Fraud(Worker):
    """The worker's hooks."""

    def __init__(self) -> None:
        super().__init__()
        from benchmarks.peers.models import load_batched  # torch in the worker alone

        self._predict_all = load_batched()

    def deserialize(self, data: bytes) -> Records:
        """The records of one request."""
        return msgspec.json.decode(data)["records"]

    def forward(self, data: list[Records]) -> list[list[list[float]]]:
        """One batch."""
        return self._predict_all(data)

    def serialize(self, data: list[list[float]]) -> bytes:
        """The body of one answer."""
        return msgspec.json.encode({"probabilities": data})


if __name__ == "__main__":
    options = read_options()
    flags = {"address": "127.0.0.1", "port": options.port, "timeout": 30_000, "log-level": "warning"}
    sys.argv[1:] = [f"--{name}={value}" for name, value in flags.items()]  # mosec parses the command line itself
    server = Server()
    server.append_worker(Fraud, max_batch_size=MAX_BATCH_ROWS, max_wait_time=1, route="/predict")
    server.run()
