"""Two batches in flight: the device does not wait for the host, and nobody waits longer for it."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_harness import ARRIVALS, CONTEXTS, outcomes, run

from benchmarks.simulation.cell import Load, simulate
from benchmarks.simulation.contenders import Contender
from benchmarks.simulation.device import DEVICES, Device
from benchmarks.simulation.pipelined import Pipelined
from benchmarks.simulation.request import Outcome
from benchmarks.simulation.workload import ONE_ROW, draw_requests

LINEAR = Device("linear", 0.010, 0.001, 10, 60.0, is_padded=False)
HOST_S = 0.001
ONE, TWO = (partial(Pipelined, host_s=HOST_S, max_in_flight=number) for number in (1, 2))


@settings(max_examples=60, deadline=None)
@given(
    arrivals=ARRIVALS,
    host_s=st.sampled_from([0.0, 0.001, 0.05]),
)
def test_every_request_has_one_outcome_and_the_device_one_batch_at_a_time(arrivals: list, host_s: float) -> None:
    arrivals.sort(key=lambda each: each.arrived_at)
    server = run(partial(Pipelined, host_s=host_s), LINEAR, arrivals)
    assert None not in outcomes(arrivals)
    assert server.busy_s <= server._clock.now + 1e-9
    for each in arrivals:
        if each.outcome is Outcome.ANSWERED:
            assert each.ended_at - each.arrived_at >= host_s + LINEAR.seconds(1) - 1e-9


@pytest.mark.parametrize("scatter", ["", ", times scatter"])
@pytest.mark.parametrize("share", [0.6, 1.3])
def test_a_busy_device_does_not_wait_for_the_host(share: float, scatter: str) -> None:
    device = DEVICES["gpu" + scatter]
    idle = []
    for build in (ONE, TWO):
        requests = draw_requests(
            ONE_ROW, device, CONTEXTS[:1], rate=share * device.capacity_rows, duration_s=0.5, seed=1
        )
        server = run(build, device, requests)
        idle.append(1 - server.busy_s / server._clock.now)
    assert idle[0] > 0.14
    assert idle[1] < 0.05


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_callers_wait_no_longer(load: float) -> None:
    offered = Load("gpu, times scatter", "1 row", load=load, num_requests=20_000)
    one, two = (simulate(Contender("", build, {}), offered).result for build in (ONE, TWO))
    assert two["goodput_share"] == 1.0
    for latency in ("p50_ms", "p99_ms"):
        assert two["latency"][latency] <= 1.02 * one["latency"][latency]


def test_beyond_the_knee_more_is_answered_in_time() -> None:
    offered = Load("gpu", "1 row", load=1.3, num_requests=20_000)
    one, two = (simulate(Contender("", build, {}), offered).result for build in (ONE, TWO))
    assert two["goodput_per_s"] > 1.15 * one["goodput_per_s"]
    assert two["outcomes"]["expired"] + two["late"] < 0.01 * two["offered"]
