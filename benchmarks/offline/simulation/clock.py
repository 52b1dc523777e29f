"""The event engine: a clock that only jumps from one event to the next.

Theory of operation: arrivals come from outside, in order, and are merged with the heap of events that the policies set
themselves, so that a million arrivals are never a heap of a million. At equal times arrivals come before events: who
arrives at the same moment is seen together by whatever wakes at it, as by an event loop that reads all its sockets
before it runs its tasks. Events of equal time run in the order in which they were set, so a run is repeatable to the
last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from benchmarks.offline.simulation.request import Request


class VirtualClock:
    """Seconds since the run began, in `now`."""

    __slots__ = ("_events", "_number", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._number = 0

    def at(self, time: float, action: Callable[[Any], None], argument: Any = None) -> None:
        """Call `action(argument)` at `time`. Events are not taken back: an action must bear to come in vain."""
        assert time >= self.now, "nothing happens in the past"
        self._number += 1
        heappush(self._events, (time, self._number, action, argument))

    def run(self, arrivals: Iterable[Request], arrive: Callable[[Request], None]) -> None:
        """Everything, until no event is left. `arrivals` are sorted by `arrived_at`."""
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
