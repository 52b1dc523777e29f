"""The precheck says of one row what the admission would say, whatever is queued, and counts its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_harness import BULK, INTERACTIVE, A, B, Request, cost_model, queue_of

from serve.batching import AdmissionController, AdmissionLimits, AdmissionPrecheck, BatchWatchdog, CostModel
from serve.core.errors import DeadlineTooShort, Draining, Overloaded
from serve.telemetry.prometheus import PrometheusRecorder

MAX_ROWS = 8
REFUSALS = (Overloaded, DeadlineTooShort)
Refusal = Overloaded | DeadlineTooShort
METRICS = PrometheusRecorder()  # one for all examples: making its table takes longer than an example
CONTEXTS, PRIORITIES = st.sampled_from([A, B]), st.sampled_from([INTERACTIVE, BULK])
TIMES_S = st.floats(0.001, 1.0)
WAITING = st.tuples(CONTEXTS, st.integers(1, 40), PRIORITIES, TIMES_S)


class Door:
    """A precheck before an admission with requests that wait, at a time that stands still."""

    def __init__(self, cost: CostModel, waiting: list[tuple[Any, ...]], limits: AdmissionLimits, on_device_s: float):
        self.now = 100.0
        self.watchdog = BatchWatchdog(20)
        self.queue = queue_of(cost=cost)
        self.admission: AdmissionController[Any] = AdmissionController(self.queue, cost, self.watchdog, limits, METRICS)
        self.precheck = AdmissionPrecheck(self.admission)
        self.admission.set_max_backlog(A, 0.2)
        if on_device_s:
            self.watchdog.begin(on_device_s, self.now - 0.01)
        for context, num_rows, priority, time_s in waiting:
            request = Request(context, num_rows, self.now, self.now + time_s, priority)
            try:
                self.admission.acquire(request, self.now)
                self.queue.add(request)
            except REFUSALS:
                pass

    def admits(self, context: Any, num_rows: int, priority: Any, timeout_s: float) -> Refusal | None:
        """What becomes of a whole request; it is taken out again."""
        request = Request(context, num_rows, self.now, self.now + timeout_s, priority)
        try:
            self.admission.acquire(request, self.now)
        except REFUSALS as refusal:
            return refusal
        self.admission.release(request)
        return None

    def asks(self, context: Any, priority: Any, timeout_s: float) -> Refusal | None:
        try:
            self.precheck.check("m", context, self.now + timeout_s, priority, self.now)
        except REFUSALS as refusal:
            return refusal
        return None


def num_refused() -> float:
    samples = [sample for family in METRICS.refused_requests.collect() for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


LIMITS = st.builds(
    AdmissionLimits, max_requests=st.integers(1, 12), max_rows=st.none() | st.integers(1, 60),
    max_backlog_s=st.sampled_from([0.03, 30.0]),
)  # fmt: skip
ASKED = {"context": CONTEXTS, "priority": PRIORITIES, "timeout_s": TIMES_S | st.just(30.0)}
STATE = {
    "waiting": st.lists(WAITING, max_size=12),
    "limits": LIMITS,
    "on_device_s": st.sampled_from([0.0, 0.005, 0.05]),
}


@given(
    seconds=st.lists(st.floats(0.001, 0.1), min_size=4, max_size=4), since_s=st.sampled_from([0.0, 50.0]),
    **STATE, **ASKED,
)  # fmt: skip
def test_it_refuses_exactly_whom_the_admission_would_refuse_one_row(
    seconds: list[float], since_s: float, waiting: Any, limits: Any, on_device_s: float, context: Any, priority: Any,
    timeout_s: float,
) -> None:  # fmt: skip
    cost = CostModel(MAX_ROWS)
    for each in (A, B):
        cost.seed(each, dict(zip((1, 2, 4, 8), seconds, strict=True)), 100.0 - since_s)
    door = Door(cost, waiting, limits, on_device_s)
    ongoing, num_rows = set(door.admission.ongoing), door.queue.num_rows
    expected, before = door.admits(context, 1, priority, timeout_s), num_refused()
    told = door.asks(context, priority, timeout_s)
    assert (told is None) == (expected is None)
    if told is not None and expected is not None:
        assert (str(told), type(told), vars(told)) == (str(expected), type(expected), vars(expected))
    assert num_refused() - before == (told is not None)
    assert (door.admission.ongoing, door.queue.num_rows) == (ongoing, num_rows), "it changes nothing"


@given(num_rows=st.integers(2, 40), **STATE, **ASKED)
def test_whom_it_refuses_would_be_refused_with_more_rows_too(
    num_rows: int, waiting: Any, limits: Any, on_device_s: float, context: Any, priority: Any, timeout_s: float
) -> None:
    door = Door(cost_model(MAX_ROWS, A, B), waiting, limits, on_device_s)
    if door.asks(context, priority, timeout_s) is not None:
        assert door.admits(context, num_rows, priority, timeout_s) is not None


def test_a_door_that_is_closed_says_so_and_counts_no_refusal() -> None:
    door = Door(cost_model(MAX_ROWS, A), [], AdmissionLimits(1), 0.0)
    door.admission.close()
    before = num_refused()
    with pytest.raises(Draining):
        door.asks(A, INTERACTIVE, math.inf)
    assert num_refused() == before
