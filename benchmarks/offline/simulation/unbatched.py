"""No batching: whoever comes first has the device for itself. The usual `predict_proba` in a web server."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from benchmarks.offline.simulation.clock import VirtualClock
from benchmarks.offline.simulation.device import Device
from benchmarks.offline.simulation.request import Context, Outcome, Request
from benchmarks.offline.simulation.server import OnEnd, Server


class Unbatched(Server):
    """One queue without limit, deadline or priority."""

    def __init__(
        self, clock: VirtualClock, device: Device, contexts: Sequence[Context] = (), on_end: OnEnd | None = None
    ) -> None:
        super().__init__(clock, device, contexts, on_end)
        self._queue: deque[Request] = deque()
        self._is_busy = False

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
