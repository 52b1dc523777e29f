"""Two batches in flight: one is prepared while the other is on the device, so that the device never waits for the host.

Theory of operation
-------------------
One task (`run`) sleeps until a batch ends, a request arrives that matters now, or a batch ahead is due. Then it
concludes what has ended, and launches what may be launched:

- What a failed batch left to be tried again goes first.
- While nothing is in flight, a batch is cut as soon as the queue has one.
- While one batch is in flight, the next is cut ahead, at a time that `lead.py` chooses.
- While two are in flight nothing is cut, so a request waits behind one batch more than it would otherwise, at most.

The batches end in the order of their launches. One that fails leaves the batch behind it alone: its smaller parts are
launched after that one. The learned cost of a batch is the time for which it kept the device: from its cut, or from the
end of the batch before it if that came later, until its own end. These times are taken on the thread that collects, as
the device does not wait for the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serve.batching.cost import CostModel
from serve.batching.device import Computed, Device
from serve.batching.fifo import count_rows
from serve.batching.lead import Lead
from serve.batching.outcomes import AdmittedRequest, CutBatch, Outcomes, Slices
from serve.batching.queue import BatchQueue
from serve.batching.watchdog import BatchWatchdog
from serve.core import FittedContext, Priority

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A batch, or a part of one that is tried again, from its launch to its end.

    Attributes:
        front_ends_at: when the batch before it was predicted to end; None where the device was free, or nothing known.
    """

    batch: CutBatch
    part: Slices
    began_at: float
    front_ends_at: float | None

    @property
    def has_bulk(self) -> bool:
        """Whether an interactive request that arrives now waits for bulk rows."""
        return any(request.priority is Priority.BULK for request, _, _ in self.part)


@dataclass(eq=False)
class Pipeline:
    """Runs batches on an engine that takes more than one. Lives on one event loop.

    Attributes:
        batches: those that were cut and have not ended; shared with the batcher.
        expire: gives waiting requests whose deadline has passed their outcome.
    """

    queue: BatchQueue[AdmittedRequest]
    cost: CostModel
    watchdog: BatchWatchdog
    device: Device
    outcomes: Outcomes
    clock: Callable[[], float]
    expire: Callable[[float], None]
    wake: asyncio.Event
    batches: list[CutBatch]

    def __post_init__(self) -> None:
        self._flights: deque[_Flight] = deque()
        self._landed: deque[Computed] = deque()
        self._parts: list[tuple[CutBatch, Slices]] = []
        """What is to be launched next, from the end: the new batch, or parts of one that failed."""
        self._lead = Lead()
        self._ended_at = -math.inf
        self._is_ahead_due = False

    def needs_turn(self, context: FittedContext) -> bool:
        """Whether a request that was queued now may change what the task does."""
        if len(self._flights) >= self.device.max_in_flight:
            return False
        return not self._is_ahead_due or self.queue.fills_batch(context)

    async def run(self) -> None:
        """Run batches until cancelled."""
        while True:
            self.wake.clear()
            while self._landed:
                self._conclude(self._landed.popleft())
            now = self.clock()
            self.expire(now)
            cut_at = self._launch_all(now)
            self._is_ahead_due = bool(self._flights) and cut_at is not None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if cut_at is None else cut_at - now):
                    await self.wake.wait()

    def _launch_all(self, now: float) -> float | None:
        """Launch what may be launched now; returns when there is more to do, None for not before an event."""
        while len(self._flights) < self.device.max_in_flight:
            if self._parts:
                batch, part = self._parts.pop()
                # A request with an outcome, such as one whose caller has left, is not computed.
                if part := [piece for piece in part if not piece.request.is_done]:
                    self._launch(batch, part, now)
                else:
                    self.outcomes.drop(batch)
                    self._end_part(batch, [])
                continue
            cut_at = self._lead.cut_at(self.queue, self.watchdog, now) if self._flights else self.queue.next_cut_at()
            if cut_at is None or cut_at > now:
                return cut_at
            slices = self.queue.cut(now, self.watchdog.remaining_s(now) if self._flights else None)
            if not slices:
                return None  # bulk rows that must not go ahead: the end of the batch on the device is awaited
            self.batches.append(CutBatch(slices))
            self._parts.append((self.batches[-1], slices))
        return None

    def _launch(self, batch: CutBatch, part: Slices, now: float) -> None:
        front_ends_at = self.watchdog.ends_at if self._flights else math.inf
        self._flights.append(_Flight(batch, part, now, front_ends_at if math.isfinite(front_ends_at) else None))
        self.watchdog.begin(self.cost.of(part[0].request.context).predict(count_rows(part)), now)
        self.device.launch(part, self._land)

    def _land(self, computed: Computed) -> None:
        self._landed.append(computed)
        self.wake.set()

    def _conclude(self, computed: Computed) -> None:
        """The oldest batch in flight has ended."""
        flight, ended_at = self._flights.popleft(), computed.ended_at
        if self.watchdog.is_hung(ended_at):
            _log.error("a batch of %d rows took %.1f s", count_rows(flight.part), ended_at - flight.began_at)
        self.watchdog.end(ended_at)
        free_at, self._ended_at = self._ended_at, ended_at
        prepared_s = computed.ready_at - flight.began_at
        self._lead.learn(prepared_s + (0.0 if flight.front_ends_at is None else flight.front_ends_at - free_at))
        smaller = self.outcomes.conclude(flight.batch, flight.part, computed, ended_at - max(flight.began_at, free_at))
        self._end_part(flight.batch, smaller)

    def _end_part(self, batch: CutBatch, smaller: list[Slices]) -> None:
        self._parts.extend((batch, part) for part in reversed(smaller))
        if batch.num_parts == 0:
            self.batches.remove(batch)
        if not any(flight.has_bulk for flight in self._flights) and not self._parts:
            self.queue.end_bulk()
