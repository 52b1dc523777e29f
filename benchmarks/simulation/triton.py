"""The policy of NVIDIA Triton's dynamic batcher, after `dynamic_batch_scheduler.cc` of triton-inference-server/core.

A batch is cut when an instance is free. It takes whole requests from the front, by priority level and then by arrival,
up to `max_batch_size` rows. The largest preferred size that can be met is sent at once. Otherwise the batch is sent
when it cannot grow, or when its oldest request is `max_queue_delay_s` old. Requests are never split, and a request
larger than `max_batch_size` is rejected. With a time-out (action REJECT) late requests are dropped when they are met.

Each fitted context is a Triton model of its own, because Triton joins only requests to one model. All models share one
device through the rate limiter with one resource: it runs one batch at a time, of the model that has run least. Without
the limiter the models' instances would contend for the GPU. A batch that a real Triton prefetches can still grow while
another runs, which comes to the same as cutting when the instance is free.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

from benchmarks.simulation.request import Context, Outcome, Request
from benchmarks.simulation.server import Server, Setup
from serve.core import Priority


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """Settings of `dynamic_batching {}`, with Triton's defaults.

    Attributes:
        max_batch_size: in rows; None: that of the device.
        has_priorities: there are two `priority_levels`.
        knows_deadlines: callers send `timeout`.
        max_request_rows: callers cut larger requests into pieces.
    """

    max_batch_size: int | None = None
    max_queue_delay_s: float = 0.0
    preferred_batch_sizes: tuple[int, ...] = ()
    has_priorities: bool = False
    knows_deadlines: bool = False
    max_request_rows: int | None = None


class _Model:
    """The queues of one model, highest priority level first."""

    __slots__ = ("levels", "num_runs")

    def __init__(self) -> None:
        self.levels: tuple[deque[Request], deque[Request]] = (deque(), deque())
        self.num_runs = 0


class Triton(Server):
    """One Triton server with one device."""

    def __init__(self, setup: Setup, settings: TritonSettings | None = None) -> None:
        super().__init__(setup)
        self._settings = settings or TritonSettings()
        self.max_request_rows = self._settings.max_request_rows
        self._max_rows = self._settings.max_batch_size or setup.device.max_batch_rows
        self._preferred = frozenset(self._settings.preferred_batch_sizes or (self._max_rows,))
        self._models: dict[Context, _Model] = {}
        self._waiting: dict[_Model, None] = {}
        """Models whose queues are not empty."""

    def arrive(self, request: Request) -> None:
        if request.num_rows > self._max_rows:
            self._end(request, Outcome.FAILED, self._clock.now)
            return
        model = self._models.setdefault(request.context, _Model())
        is_low = self._settings.has_priorities and request.priority is Priority.BULK
        model.levels[is_low].append(request)
        self._waiting[model] = None
        if not self._is_busy:
            self._wake_soon()

    def _wake(self) -> None:
        if self._is_busy:
            return
        ready_at = math.inf
        for model in sorted(self._waiting, key=lambda model: model.num_runs):
            if self._settings.knows_deadlines:
                self._reject_late(model)
            num_requests, at = self._form(model)
            if num_requests:
                self._run(model, num_requests)
                return
            ready_at = min(ready_at, at)
        if ready_at < math.inf:
            self._clock.at(ready_at, self._awake)

    def _form(self, model: _Model) -> tuple[int, float]:
        """As `GetDynamicBatch`: (requests from the front to send now, or 0; the time to look again)."""
        num_requests = num_rows = best = 0
        oldest = math.inf
        is_closed = False
        for request in itertools.chain(*model.levels):
            if num_requests and num_rows + request.num_rows > max(self._preferred) and not best:
                best = num_requests
            if num_rows + request.num_rows > self._max_rows:
                is_closed = True
                break
            num_rows += request.num_rows
            num_requests += 1
            oldest = min(oldest, request.arrived_at)
            if num_rows in self._preferred:
                best = num_requests
        delay_s = self._settings.max_queue_delay_s
        is_late = bool(delay_s) and self._clock.now >= oldest + delay_s
        if best and not is_late:
            return best, 0.0
        if is_closed or num_rows >= max(self._preferred) or is_late or not delay_s:
            return num_requests, math.inf
        return 0, oldest + delay_s

    def _reject_late(self, model: _Model) -> None:
        # requests of one level have the same time-out, so the late ones are in front
        for level in model.levels:
            while level and level[0].deadline <= self._clock.now:
                late = level.popleft()
                self._end(late, Outcome.EXPIRED, late.deadline)
        if not any(model.levels):
            del self._waiting[model]

    def _run(self, model: _Model, num_requests: int) -> None:
        high, low = model.levels
        batch = [(high or low).popleft() for _ in range(num_requests)]
        if not (high or low):
            del self._waiting[model]
        model.num_runs += 1
        self._is_busy = True
        self._clock.at(self._occupy(sum(request.num_rows for request in batch)), self._finish, batch)

    def _finish(self, batch: list[Request]) -> None:
        self._is_busy = False
        for request in batch:
            self._end(request, Outcome.ANSWERED, self._clock.now)
        self._wake()
