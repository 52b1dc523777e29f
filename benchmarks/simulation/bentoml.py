"""The policy of BentoML's adaptive batching, after bentoml 1.4.40's `marshal/dispatcher.py`.

One controller polls every millisecond. It learns `duration = a * n + b` by least squares over the last 50 calls, where
`n` is the number of *requests*, and the mean wait of each batch's oldest request. While the device is free, the
controller waits for more requests as long as `n * (age of the newest + tick + a)` is below that mean wait. It sheds its
oldest request (503) when the predicted answer passes `max_latency_s`. A batch is filled to `max_batch_size` rows, and a
request that does not fit is split there. There is no priority, and a request whose caller has left is computed too.

The first nine calls train the optimizer: they do not wait, and shed only requests that are already late. A batch of
several contexts is filled first; the service then runs the contexts one after another and returns all answers together.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.request import Context, Outcome, Request
from benchmarks.simulation.server import Server, Setup

TICK_S = 0.001
DECAY = 0.95
NUM_KEPT, NUM_SKIPPED, NUM_TRAINING = 50, 2, 9
REFRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class BentoSettings:
    """Settings of `@bentoml.api(batchable=True)`, with BentoML's defaults."""

    max_batch_size: int = 100
    max_latency_s: float = 60.0


class Optimizer:
    """The controller's estimate of a call's duration, and of the wait before it."""

    def __init__(self, max_latency_s: float) -> None:
        self.per_request_s = min(2.0, max_latency_s * 2 / 30)
        self.fixed_s = min(1.0, max_latency_s / 30)
        self.wait_s = 0.0
        self.num_calls = 0
        self._calls: deque[tuple[int, float, float]] = deque(maxlen=NUM_KEPT)
        self._refreshed_at = -math.inf

    @property
    def is_training(self) -> bool:
        """Whether the optimizer still learns from its first calls."""
        return self.num_calls < NUM_TRAINING

    def log(self, num_requests: int, wait_s: float, duration_s: float, now: float) -> None:
        """Learn from a call that has returned."""
        was_training = self.is_training
        self.num_calls += 1
        if self.num_calls <= NUM_SKIPPED:
            return
        self._calls.append((num_requests, duration_s, 0.0 if was_training else wait_s))
        if was_training or now - self._refreshed_at >= REFRESH_S:
            self._refreshed_at = now
            self._refresh()

    def _refresh(self) -> None:
        numbers, durations, waits = zip(*self._calls, strict=True)
        sides = np.stack([np.array(numbers, dtype=float), np.ones(len(numbers))], axis=1)
        per_request_s, fixed_s = np.linalg.lstsq(sides, np.array(durations), rcond=None)[0]
        self.per_request_s, self.fixed_s = max(1e-6, float(per_request_s)), max(0.0, float(fixed_s))
        self.wait_s = sum(waits) / len(waits)


class BentoML(Server):
    """One BentoML service with one batchable method."""

    def __init__(self, setup: Setup, settings: BentoSettings | None = None) -> None:
        super().__init__(setup)
        self._settings = settings or BentoSettings()
        self.optimizer = Optimizer(self._settings.max_latency_s)
        self._queue: deque[Request] = deque()
        self._head_taken = 0
        """Rows of the first queued request that ran in an earlier batch."""
        self._is_asleep = False
        self._ticked_at = 0.0
        self._wakes_at = 0.0
        self._busy_until = 0.0

    def arrive(self, request: Request) -> None:
        self._queue.append(request)
        if not self._is_asleep:
            self._wake_soon()
        elif self._is_busy and self._next_look() < self._wakes_at:
            self._sleep()

    def _wake(self) -> None:
        """The controller's loop, until it sleeps or the queue is empty."""
        now = self._clock.now
        if self._is_asleep and now < self._wakes_at:
            return  # an older alarm
        self._is_asleep = False
        self._ticked_at = now
        while self._queue:
            if self._is_to_shed(now):
                self._shed()
            elif self._is_busy or self._waits_for_company(now):
                self._sleep()
                return
            else:
                self._call()

    def _is_to_shed(self, now: float) -> bool:
        num, oldest_s = len(self._queue), now - self._queue[0].arrived_at
        most_s = self._settings.max_latency_s
        learned = self.optimizer
        if learned.is_training or num == 1:
            return (self._is_busy or num > 1) and oldest_s >= most_s
        return oldest_s + learned.per_request_s * num + learned.fixed_s >= most_s

    def _waits_for_company(self, now: float) -> bool:
        num, newest_s = len(self._queue), now - self._queue[-1].arrived_at
        learned = self.optimizer
        return (
            not learned.is_training
            and num < self._settings.max_batch_size
            and num * (newest_s + TICK_S + learned.per_request_s) <= learned.wait_s * DECAY
        )

    def _sleep(self) -> None:
        self._is_asleep = True
        self._wakes_at = self._next_look()
        self._clock.at(self._wakes_at, self._look)

    def _look(self, _: object) -> None:
        self._wake()

    def _next_look(self) -> float:
        """The next tick; on a busy device, the next tick at which the controller could act."""
        matters_at = self._ticked_at
        if self._is_busy:
            learned = self.optimizer
            ahead_s = learned.per_request_s * len(self._queue) + learned.fixed_s
            if learned.is_training or len(self._queue) == 1:
                ahead_s = 0.0
            shed_at = self._queue[0].arrived_at + self._settings.max_latency_s - ahead_s
            matters_at = min(self._busy_until, shed_at)
        past_s = max(matters_at, self._clock.now) - self._ticked_at
        return self._ticked_at + TICK_S * max(1, math.ceil(past_s / TICK_S))

    def _shed(self) -> None:
        self._head_taken = 0
        oldest = self._queue.popleft()
        self._end(oldest, Outcome.REFUSED, self._clock.now)

    def _call(self) -> None:
        room = self._settings.max_batch_size
        began_at = self._clock.now
        wait_s = began_at - self._queue[0].arrived_at
        batch: list[tuple[Request, int]] = []
        by_context: dict[Context, int] = {}
        while self._queue and room:
            request = self._queue[0]
            num_rows = min(room, request.num_rows - self._head_taken)
            room -= num_rows
            self._head_taken += num_rows
            if self._head_taken == request.num_rows:
                self._queue.popleft()
                self._head_taken = 0
            batch.append((request, num_rows))
            by_context[request.context] = by_context.get(request.context, 0) + num_rows
        busy_s = sum(self._occupy(num_rows) - began_at for num_rows in by_context.values())
        self._busy_until = began_at + busy_s
        self._is_busy = True
        self._clock.at(self._busy_until, self._finish, (batch, wait_s, busy_s))

    def _finish(self, done: tuple[list[tuple[Request, int]], float, float]) -> None:
        batch, wait_s, busy_s = done
        now = self._clock.now
        self._is_busy = False
        self.optimizer.log(len(batch), wait_s, busy_s, now)
        for request, num_rows in batch:
            request.rows_left -= num_rows
            if not request.rows_left and request.outcome is None:
                self._end(request, Outcome.ANSWERED, now)
