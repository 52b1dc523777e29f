"""`serve/batching` with an engine that takes two batches: the host prepares one while the device computes the other.

The classes are the real ones, driven as `serve/batching/pipeline.py` drives them. It is in no published comparison: its
numbers say what preparing ahead is worth, and whether the device waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from benchmarks.simulation.request import Request
from benchmarks.simulation.server import Setup
from benchmarks.simulation.tabpfn_serve import TabpfnServe
from serve.batching import Slice
from serve.batching.lead import Lead
from serve.core import Priority
from serve.settings import BatchingSettings


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch from its cut to its end; `ready_at` is when the host has prepared it."""

    batch: list[Slice[Request]]
    num_rows: int
    cut_at: float
    ready_at: float
    front_ends_at: float | None

    @property
    def has_bulk(self) -> bool:
        return any(request.priority is Priority.BULK for request, _, _ in self.batch)


class Pipelined(TabpfnServe):
    """A replica whose host needs `host_s` for each batch before the device can begin with it.

    With `max_in_flight` 1 the device waits for that time before each batch.
    """

    def __init__(
        self, setup: Setup, settings: BatchingSettings | None = None, *, host_s: float, max_in_flight: int = 2
    ) -> None:
        super().__init__(setup, settings)
        self._host_s, self._max_in_flight = host_s, max_in_flight
        self._host_free_at = self._device_free_at = self._ended_at = 0.0
        self._flights: deque[_Flight] = deque()
        self._lead = Lead()

    def _wake(self) -> None:
        now = self._clock.now
        self._expire()
        while len(self._flights) < self._max_in_flight:
            cut_at = self._lead.cut_at(self._queue, self._watchdog, now) if self._flights else self._queue.next_cut_at()
            if cut_at is not None and cut_at > now:
                self._clock.at(cut_at, self._awake)
            if cut_at is None or cut_at > now:
                return
            batch = self._queue.cut(now, self._watchdog.remaining_s(now) if self._flights else None)
            if not batch:
                return
            self._launch(batch, now)

    def _launch(self, batch: list[Slice[Request]], now: float) -> None:
        num_rows = sum(stop - start for _, start, stop in batch)
        ready_at = self._host_free_at = max(now, self._host_free_at) + self._host_s
        device_s = self._occupy(num_rows) - now
        self._device_free_at = max(ready_at, self._device_free_at) + device_s
        front_ends_at = self._watchdog.ends_at if self._flights else None
        self._flights.append(_Flight(batch, num_rows, now, ready_at, front_ends_at))
        self._watchdog.begin(self._cost.of(batch[0].request.context).predict(num_rows), now)
        self._clock.at(self._device_free_at, self._land)

    def _land(self, _: object) -> None:
        now, flight = self._clock.now, self._flights.popleft()
        self._watchdog.end(now)
        prepared_s, free_at = flight.ready_at - flight.cut_at, self._ended_at
        self._ended_at = now
        self._lead.learn(prepared_s + (0.0 if flight.front_ends_at is None else flight.front_ends_at - free_at))
        if not any(other.has_bulk for other in self._flights):
            self._queue.end_bulk()
        self._settle(flight.batch, flight.num_rows, now - max(flight.cut_at, free_at))
