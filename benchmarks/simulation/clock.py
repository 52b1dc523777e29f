"""The virtual clock: it jumps from one event to the next.

Theory of operation: arrivals come sorted from outside and are merged with the heap of events that the policies set, so
a million arrivals never stand in the heap. At equal times arrivals come before events, as in an event loop that reads
all its sockets before it runs its tasks. Events of equal time run in the order in which they were set. So a run is
repeatable to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from benchmarks.simulation.request import Request


class VirtualClock:
    """`now`: seconds since the run began."""

    __slots__ = ("_events", "_number", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._number = 0

    def at(self, time: float, action: Callable[[Any], None], argument: Any = None) -> None:
        """Call `action(argument)` at `time`. Events cannot be cancelled: actions check if they are still due."""
        assert time >= self.now, "an event cannot be set for the past"
        self._number += 1
        heappush(self._events, (time, self._number, action, argument))

    def run(self, arrivals: Iterable[Request], arrive: Callable[[Request], None]) -> None:
        """Run until no arrival and no event is left. `arrivals` are sorted by `arrived_at`."""
        events = self._events
        for request in arrivals:
            arrived_at = request.arrived_at
            while events and events[0][0] < arrived_at:
                self.now, _, action, argument = heappop(events)
                action(argument)
            self.now = arrived_at
            arrive(request)
        while events:
            self.now, _, action, argument = heappop(events)
            action(argument)
