"""A copy of what decides whether one row is admitted, as numbers that other processes can read.

Theory of operation
-------------------
A front process refuses requests early, as the batcher's process would. So the batcher's process copies its state at one
moment (`Load.numbers`), and the front runs the same check (`AdmissionCheck`) on the copy (`CopiedAdmission`). The copy
holds what the check asks for one row, and nothing more: a head of `_HEAD` numbers, then the `_CONTEXT` numbers of each
context. Times are seconds on the clock of `time.monotonic`, which all processes of a machine share. So a copy grows old
only by what the batcher has done since.

What is always true: on a copy of now, the check for one row raises what it raises on the original
(`tests/batching/test_snapshot.py`).
"""

# ruff: noqa: ARG002  (a copy is asked for one row alone, so it needs no number of rows)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from serve.batching.admission import AdmissionCheck, AdmissionController, OneRow
from serve.batching.admission_inputs import Forecast
from serve.batching.cost import CostModel
from serve.batching.fifo import QueuedRequest, WaitingTimes, turn_of
from serve.batching.limits import AdmissionLimits, QueueLimits
from serve.batching.queue import BatchQueue
from serve.batching.watchdog import BatchWatchdog, DeviceLoad
from serve.core import FittedContext, Priority
from serve.telemetry.recorder import Recorder


class _Head(NamedTuple):
    """The state that all contexts share."""

    is_closed: float
    num_requests: float
    num_rows: float
    num_waiting_rows: float
    began_at: float
    first_s: float
    total_s: float


class _Context(NamedTuple):
    """The state of one context; `interactive_own_s` and `bulk_own_s` are the seconds of one more row."""

    interactive_s: float
    bulk_s: float
    interactive_turn: float
    bulk_turn: float
    interactive_own_s: float
    bulk_own_s: float
    company_s: float
    one_s: float
    fastest_s: float
    measured_at: float
    has_run: float


_HEAD, _CONTEXT = len(_Head._fields), len(_Context._fields)
_NOTHING_WAITS = WaitingTimes(0.0, 0.0, math.inf, math.inf)


def count_numbers(num_contexts: int) -> int:
    """How many numbers a copy has."""
    return _HEAD + num_contexts * _CONTEXT


class Load:
    """The state of a batcher, for copies of it. Used on its event loop."""

    def __init__(
        self,
        queue: BatchQueue[Any],
        cost: CostModel,
        watchdog: BatchWatchdog,
        admission: AdmissionController[Any],
    ) -> None:
        self._queue = queue
        self._cost = cost
        self._watchdog = watchdog
        self._admission = admission

    @property
    def is_idle(self) -> bool:
        """Nothing is admitted and nothing computed, so that only an admission changes the state."""
        device = self._watchdog.load()
        return not self._admission.ongoing and device.first_s != device.first_s

    def numbers(self, contexts: Sequence[FittedContext]) -> list[float]:
        """A copy for these contexts, in their order."""
        admission, device = self._admission, self._watchdog.load()
        numbers: list[float] = [
            admission.is_closed, admission.num_requests, admission.num_rows, self._queue.num_rows, *device
        ]  # fmt: skip
        for context in contexts:
            numbers += self._of(context)
        return numbers

    def _of(self, context: FittedContext) -> _Context:
        queue, cost = self._queue, self._cost.of(context)
        interactive = OneRow("", context, 1, Priority.INTERACTIVE, 0.0, math.inf)
        bulk = interactive._replace(priority=Priority.BULK)
        _, own_s, company_s = queue.forecast(interactive)
        return _Context(
            *(queue.waiting_times(context) or _NOTHING_WAITS),
            own_s,
            queue.forecast(bulk).own_s,
            company_s,
            cost.predict(1),
            cost.fastest(1, 1),
            cost.measured_at(1),
            cost.has_run(1),
        )


class _CopiedCost:
    """The costs of one row (`admission_inputs.ContextTimes`); it is asked for no more rows."""

    def __init__(self, copied: _Context) -> None:
        self._copied = copied

    def predict(self, num_rows: int) -> float:
        return self._copied.one_s

    def predict_all(self, num_rows: int, batch_rows: int) -> float:
        return self._copied.one_s

    def fastest(self, num_rows: int, batch_rows: int) -> float:
        return self._copied.fastest_s

    def measured_at(self, num_rows: int) -> float:
        return self._copied.measured_at

    def has_run(self, num_rows: int) -> bool:
        return bool(self._copied.has_run)


class _Copy:
    """The queue, the costs and the device of a copy (`admission_inputs`). Contexts are read when they are asked for."""

    def __init__(self, contexts: Sequence[FittedContext], limits: QueueLimits) -> None:
        self._places = {id(context): _HEAD + _CONTEXT * place for place, context in enumerate(contexts)}
        self._limits = limits
        self._numbers: Sequence[float] = ()
        self.head = _Head(*[0.0] * _HEAD)

    def take(self, numbers: Sequence[float]) -> None:
        self._numbers = numbers
        self.head = _Head(*numbers[:_HEAD])

    @property
    def num_rows(self) -> int:
        return int(self.head.num_waiting_rows)

    def remaining_s(self, now: float) -> float:
        return DeviceLoad(self.head.began_at, self.head.first_s, self.head.total_s).remaining_s(now)

    def of(self, context: FittedContext) -> _CopiedCost:
        return _CopiedCost(self._context(self._places[id(context)]))

    def forecast(self, request: QueuedRequest) -> Forecast:
        others = [self._context(place) for place in self._places.values()]
        own = self._context(self._places[id(request.context)])
        before = sum(each.interactive_s for each in others)
        if request.priority is Priority.BULK:
            return Forecast(before + sum(each.bulk_s for each in others), own.bulk_own_s, 0.0)
        return Forecast(before, own.interactive_own_s, own.company_s)

    def seconds_before_turn(self, request: QueuedRequest) -> float:
        turn, is_bulk = turn_of(request, self._limits), request.priority is Priority.BULK
        own = self._places[id(request.context)]
        return sum(
            WaitingTimes(*self._context(place)[:4]).before(turn, is_own=place == own, is_bulk=is_bulk)
            for place in self._places.values()
        )

    def max_batch_rows(self, request: QueuedRequest, cost: Any) -> int:
        return 1

    def _context(self, place: int) -> _Context:
        return _Context(*self._numbers[place : place + _CONTEXT])


class CopiedAdmission(AdmissionCheck):
    """The check for one row on the latest copy: `take` first. A context that the copy lacks raises KeyError."""

    def __init__(
        self,
        contexts: Sequence[FittedContext],
        queue_limits: QueueLimits,
        limits: AdmissionLimits,
        recorder: Recorder,
    ) -> None:
        """`contexts` are those of the copies, in the same order."""
        self._copy = _Copy(contexts, queue_limits)
        super().__init__(self._copy, self._copy, self._copy, limits, recorder)

    def take(self, numbers: Sequence[float]) -> None:
        """The next copy, as `Load.numbers` made it."""
        self._copy.take(numbers)

    @property
    def is_closed(self) -> bool:
        return bool(self._copy.head.is_closed)

    @property
    def num_requests(self) -> int:
        return int(self._copy.head.num_requests)

    @property
    def num_rows(self) -> int:
        return int(self._copy.head.num_rows)
