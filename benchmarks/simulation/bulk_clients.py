"""A closed loop of bulk callers: each sends its next large request when the last one has ended, as batch jobs do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.percentiles import rounded
from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.request import Context, Outcome, Request
from benchmarks.simulation.workload import BULK_DEADLINE_S, BULK_ROWS
from serve.core import Priority

SHORTEST_PAUSE_S = 0.1
"""Before the next request after a refusal, unless the server asks for a longer pause."""


class BulkClients:
    """Callers with one request each at a time. Together they keep a device of any speed busy."""

    def __init__(
        self, clock: VirtualClock, context: Context, num_clients: int, until: float, accept: Callable[[Request], None]
    ) -> None:
        self.sent: list[Request] = []
        self._clock = clock
        self._context = context
        self._until = until
        self._accept = accept
        for _ in range(num_clients):
            clock.at(0.0, self._send)

    def _send(self, _: object) -> None:
        now = self._clock.now
        request = Request(self._context, BULK_ROWS, Priority.BULK, now, now + BULK_DEADLINE_S)
        self.sent.append(request)
        self._accept(request)

    def measure(self, since: float) -> dict[str, Any]:
        """Counts of the requests that ended between `since` and the end of the load, whenever they were sent."""
        ended = [request for request in self.sent if since <= request.ended_at < self._until]
        answered = [request for request in ended if request.outcome is Outcome.ANSWERED]
        rows = sum(request.num_rows for request in answered)
        return {
            "rows_per_s": rounded(rows / (self._until - since)),
            "answered": len(answered),
            "not_answered": len(ended) - len(answered),
        }

    def on_end(self, request: Request) -> None:
        """A request of any caller has ended; only bulk requests matter here."""
        if request.priority is not Priority.BULK:
            return
        pause_s = 0.0 if request.outcome is Outcome.ANSWERED else max(request.retry_after_s, SHORTEST_PAUSE_S)
        if self._clock.now + pause_s < self._until:
            self._clock.at(self._clock.now + pause_s, self._send)
