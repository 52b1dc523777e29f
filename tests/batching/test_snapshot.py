"""The check of one row on a copy of the batcher's state says what it says on the state itself."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_harness import BULK, INTERACTIVE, A, B, Request, cost_model, queue_of

from serve.batching import AdmissionController, AdmissionLimits, AdmissionPrecheck, BatchWatchdog, QueueLimits
from serve.batching.snapshot import CopiedAdmission, Load, count_numbers
from serve.core.errors import DeadlineTooShort, Draining, Overloaded
from serve.telemetry.prometheus import PrometheusRecorder

CONTEXTS, PRIORITIES = st.sampled_from([A, B]), st.sampled_from([INTERACTIVE, BULK])
TIMES_S = st.floats(0.001, 1.0)
NOW = 100.0
METRICS, COPYS_METRICS = PrometheusRecorder(), PrometheusRecorder()


def refusal_of(check: AdmissionPrecheck, context: Any, timeout_s: float, priority: Any, now: float) -> Any:
    try:
        check.check("m", context, now + timeout_s, priority, now)
    except (Overloaded, DeadlineTooShort) as refusal:
        return type(refusal), str(refusal), getattr(refusal, "reason", None), getattr(refusal, "retry_after_s", None)
    return None


def refused(metrics: PrometheusRecorder) -> dict[tuple[str, ...], float]:
    samples = [sample for family in metrics.refused_requests.collect() for sample in family.samples]
    return {tuple(s.labels.values()): s.value for s in samples if s.name.endswith("_total")}


@given(
    waiting=st.lists(st.tuples(CONTEXTS, st.integers(1, 40), PRIORITIES, TIMES_S), max_size=12),
    limits=st.builds(
        AdmissionLimits,
        max_requests=st.integers(1, 12),
        max_rows=st.none() | st.integers(1, 60),
        max_backlog_s=st.sampled_from([0.03, 30.0]),
    ),
    on_device_s=st.lists(st.sampled_from([0.0, 0.005, 0.05]), max_size=2),
    measured=st.booleans(),
    learned=st.lists(st.tuples(CONTEXTS, st.sampled_from([0.0001, 0.02, 0.5])), max_size=3),
    cuts=st.integers(0, 2),
    asked=st.lists(st.tuples(CONTEXTS, TIMES_S | st.just(30.0), PRIORITIES), min_size=1, max_size=6),
    later_s=st.sampled_from([0.0, 0.004, 20.0]),
)
def test_a_copy_refuses_as_the_original_does(
    waiting: list[tuple[Any, ...]], limits: AdmissionLimits, on_device_s: list[float], measured: bool,
    learned: list[tuple[Any, float]], cuts: int, asked: list[tuple[Any, ...]], later_s: float,
) -> None:  # fmt: skip
    cost, watchdog, queue_limits = cost_model(8, *([A, B] if measured else [])), BatchWatchdog(20), QueueLimits()
    for context, seconds in learned:
        cost.of(context).learn(1, seconds, NOW - 1)
    queue = queue_of(cost=cost)
    admission: AdmissionController[Any] = AdmissionController(queue, cost, watchdog, limits, METRICS)
    copy = CopiedAdmission([A, B], queue_limits, limits, COPYS_METRICS)
    for check in (admission, copy):
        check.set_max_backlog(A, 0.2)
    for seconds in on_device_s:
        watchdog.begin(seconds, NOW - 0.01)
    for context, num_rows, priority, time_s in waiting:
        request = Request(context, num_rows, NOW, NOW + time_s, priority)
        try:
            admission.acquire(request, NOW)
            queue.add(request)
        except (Overloaded, DeadlineTooShort):
            pass
    for _ in range(cuts):
        queue.cut(NOW, 0.01 if on_device_s else None)
    numbers = Load(queue, cost, watchdog, admission).numbers([A, B])
    assert len(numbers) == count_numbers(2)
    form = struct.Struct(f"<{len(numbers)}d")  # as they cross
    copy.take(form.unpack(form.pack(*numbers)))
    before, copys_before = refused(METRICS), refused(COPYS_METRICS)
    for context, timeout_s, priority in asked:
        request = (context, timeout_s, priority, NOW + later_s)
        found, copied = (refusal_of(AdmissionPrecheck(check), *request) for check in (admission, copy))
        if found is not None and copied is not None:
            assert copied[-1] == pytest.approx(found[-1], abs=1e-9)  # sums of floats in another order
            found, copied = found[:-1], copied[:-1]
        assert copied == found
    grown = {key: value - before.get(key, 0.0) for key, value in refused(METRICS).items()}
    assert {k: v for k, v in grown.items() if v} == {
        key: value - copys_before.get(key, 0.0)
        for key, value in refused(COPYS_METRICS).items()
        if value != copys_before.get(key, 0.0)
    }


def test_a_copy_of_a_closed_admission_is_closed() -> None:
    cost, watchdog = cost_model(8, A), BatchWatchdog(20)
    queue = queue_of(cost=cost)
    admission: AdmissionController[Any] = AdmissionController(queue, cost, watchdog, AdmissionLimits(8))
    load, copy = (
        Load(queue, cost, watchdog, admission),
        CopiedAdmission([A], QueueLimits(), AdmissionLimits(8), METRICS),
    )
    copy.take(load.numbers([A]))
    AdmissionPrecheck(copy).check("m", A, NOW + 1, INTERACTIVE, NOW)
    admission.close()
    copy.take(load.numbers([A]))
    with pytest.raises(Draining):
        AdmissionPrecheck(copy).check("m", A, NOW + 1, INTERACTIVE, NOW)


def test_it_is_idle_when_nothing_is_admitted_and_nothing_computed() -> None:
    cost, watchdog = cost_model(8, A), BatchWatchdog(20)
    queue = queue_of(cost=cost)
    admission: AdmissionController[Any] = AdmissionController(queue, cost, watchdog, AdmissionLimits(8))
    load = Load(queue, cost, watchdog, admission)
    assert load.is_idle
    request = Request(A, 1, NOW, NOW + 1)
    admission.acquire(request, NOW)
    assert not load.is_idle
    watchdog.begin(0.0, NOW)  # of unknown cost
    admission.release(request)
    assert not load.is_idle
    watchdog.end(NOW)
    assert load.is_idle
