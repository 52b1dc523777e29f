"""No batching: requests run one after another. This is the usual `predict_proba` inside a web server."""

from __future__ import annotations

from collections import deque

from benchmarks.simulation.request import Outcome, Request
from benchmarks.simulation.server import Server, Setup


class Unbatched(Server):
    """One queue without limit, deadline or priority."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._queue: deque[Request] = deque()

    def arrive(self, request: Request) -> None:
        self._queue.append(request)
        if not self._is_busy:
            self._wake()

    def _wake(self) -> None:
        if self._queue:
            self._is_busy = True
            request = self._queue.popleft()
            self._clock.at(self._occupy(request.num_rows), self._finish, request)

    def _finish(self, request: Request) -> None:
        self._is_busy = False
        self._end(request, Outcome.ANSWERED, self._clock.now)
        self._wake()
