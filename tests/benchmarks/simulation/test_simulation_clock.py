"""The virtual clock, checked against a queue whose mean wait is known."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.device import Device
from benchmarks.simulation.request import Context, Request
from benchmarks.simulation.server import Setup
from benchmarks.simulation.unbatched import Unbatched
from benchmarks.simulation.workload import ONE_ROW, draw_requests
from serve.core import Priority

CONTEXT = Context(0)


def request_at(time: float) -> Request:
    return Request(CONTEXT, 1, Priority.INTERACTIVE, time)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_mean_wait_of_one_device_without_batching_is_the_formula_of_m_d_1(load: float) -> None:
    """Pollaczek-Khinchine with a constant service time D: rho * D / (2 * (1 - rho))."""
    service_s = 0.01
    device = Device("test", service_s, 0.0, 256, 1.0)
    requests = draw_requests(ONE_ROW, device, [CONTEXT], rate=load / service_s, duration_s=1500.0)
    clock = VirtualClock()
    server = Unbatched(Setup(clock, device))
    clock.run(requests, server.accept)
    waits = [request.ended_at - request.arrived_at - service_s for request in requests]
    assert sum(waits) / len(waits) == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.05)
    assert server.busy_s == pytest.approx(len(requests) * service_s)


@given(st.lists(st.floats(0, 10), max_size=20), st.lists(st.floats(0, 10), max_size=20))
def test_time_never_runs_back_and_arrivals_come_before_events_of_the_same_moment(
    arrivals: list[float], events: list[float]
) -> None:
    clock = VirtualClock()
    seen: list[tuple[float, int]] = []
    for time in events:
        clock.at(time, lambda _: seen.append((clock.now, 1)))
    clock.run([request_at(time) for time in sorted(arrivals)], lambda _: seen.append((clock.now, 0)))
    assert seen == sorted(seen)
    assert sorted(time for time, _ in seen) == sorted([*arrivals, *events])


def test_events_of_one_moment_keep_their_order() -> None:
    clock = VirtualClock()
    seen: list[int] = []
    for number in range(5):
        clock.at(1.0, seen.append, number)
    clock.run([], lambda _: None)
    assert seen == [0, 1, 2, 3, 4]


def test_an_event_may_set_another_for_now_but_none_for_the_past() -> None:
    clock = VirtualClock()
    seen: list[float] = []
    clock.at(2.0, lambda _: clock.at(2.0, lambda _: seen.append(clock.now)))
    clock.run([], lambda _: None)
    assert seen == [2.0]
    with pytest.raises(AssertionError, match="past"):
        clock.at(1.0, lambda _: None)


def test_a_device_costs_by_buckets_and_by_full_batches() -> None:
    device = Device("test", 0.01, 0.001, 64, 1.0)
    assert device.seconds(1) == pytest.approx(0.011)
    assert device.seconds(33) == pytest.approx(0.01 + 0.064)
    assert device.seconds(130) == pytest.approx(2 * 0.074 + 0.012)
    assert device.buckets[64] == device.seconds(64)
    assert list(device.buckets) == [1, 2, 4, 8, 16, 32, 64]
    assert device.capacity_rows == pytest.approx(64 / 0.074)
    exact = Device("test", 0.01, 0.001, 100, 1.0, is_padded=False)
    assert exact.seconds(33) == pytest.approx(0.043)
    assert max(exact.buckets) == 100
    assert not math.isnan(sum(exact.buckets.values()))


def test_times_scatter_around_the_cost_of_a_batch() -> None:
    device = Device("test", 0.01, 0.0, 256, 1.0, scatter=0.2)
    requests = [request_at(float(number)) for number in range(4000)]
    clock = VirtualClock()
    clock.run(requests, Unbatched(Setup(clock, device)).accept)
    seconds = [request.ended_at - request.arrived_at for request in requests]
    assert sum(seconds) / len(seconds) == pytest.approx(0.01, rel=0.02)
    assert statistics.stdev(seconds) == pytest.approx(0.002, rel=0.1)
