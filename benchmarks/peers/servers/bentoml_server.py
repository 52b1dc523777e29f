"""BentoML with adaptive batching (docs.bentoml.com, Adaptive batching), started by its own command, `bentoml serve`.

`max_latency_ms` is the latency that the dispatcher plans for and beyond which it refuses requests (503): here it is the
bound of the benchmark. Access log and usage tracking are off. One worker means one model process.
"""

from typing import Any

import bentoml

from benchmarks.peers.servers.options import MAX_BATCH_ROWS

MAX_LATENCY_MS = 100


@bentoml.service(name="fraud", workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Fraud:
    """The service."""

    def __init__(self) -> None:
        from benchmarks.peers.models import load_from_environment  # torch in the worker alone

        self._predict = load_from_environment()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_ROWS, max_latency_ms=MAX_LATENCY_MS)
    def predict(self, records: list[dict[str, Any]]) -> list[list[float]]:
        """One batch; BentoML joins and splits the requests."""
        return self._predict(records)
