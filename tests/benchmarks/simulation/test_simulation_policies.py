"""The simulated peers behave as their sources say, faults included; the server's own policy lacks these faults."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from simulation_harness import (
    ARRIVALS,
    BULK,
    A,
    B,
    Build,
    latencies,
    median,
    outcomes,
    request,
    run,
)

from benchmarks.simulation.bentoml import BentoML, BentoSettings, Optimizer
from benchmarks.simulation.contenders import WITH_DEFAULTS, candidates
from benchmarks.simulation.device import DEVICES, Device
from benchmarks.simulation.ray_serve import RayServe, RaySettings
from benchmarks.simulation.request import Outcome, Request
from benchmarks.simulation.tabpfn_serve import TabpfnServe
from benchmarks.simulation.triton import Triton, TritonSettings
from benchmarks.simulation.unbatched import Unbatched
from serve.batching.limits import BULK_COST_FACTOR
from serve.settings import BatchingSettings

FLAT = Device("flat", 0.2, 0.0, 16, 60.0, is_padded=False)
LINEAR = Device("linear", 0.010, 0.001, 10, 60.0, is_padded=False)
EVERYONE = [*WITH_DEFAULTS, *(tried[0] for tried in candidates(LINEAR).values())]
NO_LIMIT = 10**6


def ray(max_batch_size: int, wait_s: float, **more: int | bool) -> Build:
    chosen = RaySettings(max_batch_size, wait_s, **{"max_ongoing_requests": NO_LIMIT, **more})  # type: ignore[arg-type]
    return lambda setup: RayServe(setup, chosen)


def triton(**chosen: object) -> Build:
    return lambda setup: Triton(setup, TritonSettings(**chosen))  # type: ignore[arg-type]


# --- true of every policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contender", EVERYONE, ids=[each.name for each in EVERYONE])
@settings(max_examples=60, deadline=None)
@given(arrivals=ARRIVALS)
def test_every_request_has_one_outcome_and_the_device_one_batch_at_a_time(
    contender: object, arrivals: list[Request]
) -> None:
    arrivals.sort(key=lambda each: each.arrived_at)
    server = run(contender.build, LINEAR, arrivals)  # type: ignore[attr-defined]
    assert None not in outcomes(arrivals)
    assert all(each.ended_at >= each.arrived_at for each in arrivals)
    answered = [each for each in arrivals if each.outcome is Outcome.ANSWERED]
    assert server.num_batch_rows >= sum(each.num_rows for each in answered)
    assert server.num_batch_rows <= sum(each.num_rows for each in arrivals)
    assert server.busy_s <= server._clock.now + 1e-9
    for each in answered:
        assert each.ended_at - each.arrived_at >= LINEAR.seconds(1) - 1e-9


@pytest.mark.parametrize("contender", EVERYONE, ids=[each.name for each in EVERYONE])
def test_an_idle_server_answers_a_lone_request_after_its_wait_and_one_batch(contender: object) -> None:
    lone = request(at=1.0)
    run(contender.build, FLAT, [lone])  # type: ignore[attr-defined]
    # BentoML and Triton do not wait at an idle device; Ray waits for its timer
    assert latencies([lone])[0] in (pytest.approx(0.2), pytest.approx(0.21))


# --- Ray: the batch is closed while the device is busy ----------------------------------------------------------------

BASELINE = [
    # (wait, mean batch, p50) measured on the `_BatchQueue` of ray 2.60
    (0.010, 1.00, 14.0),
    (0.050, 2.76, 3.8),
    (0.200, 8.0, 0.325),
]


def half_load() -> list[Request]:
    """One request every 25 ms, for a device that runs 16 in 200 ms."""
    return [request(at=0.025 * number) for number in range(160)]


@pytest.mark.parametrize(("wait_s", "mean_batch", "p50_s"), BASELINE)
def test_ray_as_simulated_is_ray_as_measured(wait_s: float, mean_batch: float, p50_s: float) -> None:
    requests = half_load()
    server = run(ray(16, wait_s), FLAT, requests)
    assert len(requests) / server.num_batches == pytest.approx(mean_batch, rel=0.12)
    assert median(latencies(requests)) == pytest.approx(p50_s, rel=0.12)


def test_tabpfn_serve_cuts_when_the_device_is_free() -> None:
    """Measured for such a batcher beside Ray: mean batch 7.3, p50 301 ms."""
    requests = half_load()
    server = run(TabpfnServe, FLAT, requests)
    assert len(requests) / server.num_batches == pytest.approx(7.3, rel=0.12)
    assert median(latencies(requests)) == pytest.approx(0.301, rel=0.12)


def test_a_closed_batch_of_ray_cannot_grow_and_a_batch_of_tabpfn_serve_takes_all_waiting_requests() -> None:
    def arrivals() -> list[Request]:
        return [request(at=at) for at in (0.0, 0.05, 0.10, 0.15)]

    assert run(ray(16, 0.01), FLAT, arrivals()).num_batches == 4
    assert run(TabpfnServe, FLAT, arrivals()).num_batches == 2


def test_ray_with_its_default_limit_never_fills_its_default_batch() -> None:
    """`max_ongoing_requests` 5, `max_batch_size` 10: each batch of five waits in vain for a sixth request."""
    requests = [request() for _ in range(20)]
    server = run(RayServe, FLAT, requests)
    assert server.num_batches == 4
    assert max(latencies(requests)) == pytest.approx(4 * (0.2 + 0.01))


# --- large requests ---------------------------------------------------------------------------------------------------

SIMULTANEOUS = (3, 10, *(1,) * 12)
TWELVE = Device("twelve", 0.01, 0.001, 12, 60.0, is_padded=False)


def simultaneous() -> list[Request]:
    return [request(num_rows=num_rows) for num_rows in SIMULTANEOUS]


def test_ray_serves_a_large_request_last_although_it_arrived_second() -> None:
    requests = simultaneous()
    run(ray(12, 0.0, counts_rows=True), TWELVE, requests)
    assert requests[1].ended_at > max(each.ended_at for each in requests if each is not requests[1])


def test_tabpfn_serve_serves_a_large_request_in_its_turn() -> None:
    requests = simultaneous()
    run(TabpfnServe, TWELVE, requests)
    ends = [each.ended_at for each in requests]
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("build", "outcome"),
    [
        (ray(10, 0.0, counts_rows=True), Outcome.FAILED),
        (Triton, Outcome.FAILED),
        (BentoML, Outcome.ANSWERED),
        (Unbatched, Outcome.ANSWERED),
        (TabpfnServe, Outcome.ANSWERED),
    ],
    ids=["ray", "triton", "bentoml", "no batching", "tabpfn-serve"],
)
def test_which_servers_take_a_request_larger_than_a_batch(build: Build, outcome: Outcome) -> None:
    large, small = request(num_rows=25), request(num_rows=1)
    run(build, LINEAR, [large, small])
    assert outcomes([large, small]) == [outcome, Outcome.ANSWERED]


def test_a_request_in_pieces_is_answered_with_its_last_piece() -> None:
    large = request(num_rows=25)
    server = run(triton(max_request_rows=10), LINEAR, [large])
    assert large.outcome is Outcome.ANSWERED
    assert server.num_batches == 3
    assert large.ended_at == pytest.approx(LINEAR.seconds(25))


def test_triton_does_not_split_to_fill_a_batch_and_tabpfn_serve_does() -> None:
    def arrivals() -> list[Request]:
        return [request(num_rows=7) for _ in range(10)]

    assert run(Triton, LINEAR, arrivals()).num_batches == 10
    assert run(TabpfnServe, LINEAR, arrivals()).num_batches == 7


# --- order ------------------------------------------------------------------------------------------------------------


def behind_bulk(build: Build) -> float:
    """Latency of one row that arrives just after a bulk request of 1,000 rows, on the CPU demo's device."""
    lone = request(at=0.001, timeout_s=60.0)
    run(build, DEVICES["cpu-demo"], [request(num_rows=1000, priority=BULK, timeout_s=60.0), lone])
    assert lone.outcome is Outcome.ANSWERED
    return latencies([lone])[0]


def test_an_interactive_row_waits_for_a_whole_bulk_request_except_with_tabpfn_serve() -> None:
    device = DEVICES["cpu-demo"]
    whole_s = device.seconds(1000)
    for build in (Unbatched, RayServe):
        assert behind_bulk(build) > whole_s
    assert behind_bulk(lambda setup: BentoML(setup, BentoSettings(128))) > 0.95 * whole_s
    with_levels = triton(max_batch_size=128, has_priorities=True, max_request_rows=128)
    assert behind_bulk(with_levels) == pytest.approx(device.seconds(128) + device.seconds(1), rel=0.01)
    # the rest of one short batch, and its own batch, which bulk rows may share
    assert behind_bulk(TabpfnServe) <= 2 * BULK_COST_FACTOR * device.seconds(1)


def test_tritons_priorities_starve_bulk_and_those_of_tabpfn_serve_do_not() -> None:
    def arrivals() -> list[Request]:
        interactive = [request(at=0.01 * number, num_rows=5, timeout_s=60.0) for number in range(1, 1000)]
        return [request(at=0.012, priority=BULK, num_rows=6, timeout_s=60.0), *interactive]

    starved, served = arrivals(), arrivals()
    run(triton(has_priorities=True), LINEAR, starved)
    run(TabpfnServe, LINEAR, served)
    assert starved[0].ended_at > 9.0
    assert served[0].ended_at < 2.5


def test_ray_joins_contexts_and_runs_them_apart() -> None:
    """Two contexts in turn: Ray splits a full batch of ten in two; tabpfn-serve joins ten rows of each context."""

    def arrivals() -> list[Request]:
        return [request(context=(A, B)[number % 2]) for number in range(20)]

    assert run(ray(10, 0.0), LINEAR, arrivals()).num_batches == 4
    assert run(BentoML, LINEAR, arrivals()).num_batches == 2  # max_batch_size 100 holds all of them
    assert run(TabpfnServe, LINEAR, arrivals()).num_batches == 2


# --- deadlines --------------------------------------------------------------------------------------------------------


def overload() -> list[Request]:
    """Twice the capacity of LINEAR in full batches, for ten seconds."""
    return [request(at=number / 1000, timeout_s=0.1) for number in range(10_000)]


@pytest.mark.parametrize("build", [Unbatched, RayServe, Triton, BentoML], ids=lambda build: build.__name__)
def test_without_deadlines_an_overload_makes_every_answer_late(build: Build) -> None:
    requests = overload()
    run(build, LINEAR, requests)
    in_time = [each for each in requests if each.outcome is Outcome.ANSWERED and each.ended_at <= each.deadline]
    assert len(in_time) < 0.15 * len(requests)
    assert max(latencies(requests)) > 5.0


def test_in_overload_tabpfn_serve_fills_the_device_and_refuses_the_rest_at_once() -> None:
    requests = overload()
    server = run(TabpfnServe, LINEAR, requests)
    in_time = [each for each in requests if each.outcome is Outcome.ANSWERED and each.ended_at <= each.deadline]
    assert len(in_time) >= 0.9 * 10.0 * LINEAR.capacity_rows
    refused = [each for each in requests if each.outcome is Outcome.REFUSED]
    assert max(latencies(refused)) == 0.0
    assert all(each.retry_after_s > 0 for each in refused)
    assert server.busy_s >= 9.9


def test_a_queue_delay_is_spent_only_at_an_idle_device() -> None:
    delayed: Build = lambda setup: TabpfnServe(setup, BatchingSettings(max_queue_delay_ms=50))  # noqa: E731
    requests = [request(at=1.0), request(at=1.04)]
    server = run(delayed, FLAT, requests)
    assert server.num_batches == 1
    assert latencies(requests) == pytest.approx([0.25, 0.21])


# --- details of the peers ---------------------------------------------------------------------------------------------


def test_triton_sends_a_preferred_size_first_and_waits_its_delay_for_the_rest() -> None:
    requests = [request() for _ in range(5)]
    server = run(triton(preferred_batch_sizes=(4,), max_queue_delay_s=0.5), FLAT, requests)
    assert server.num_batches == 2
    assert latencies(requests) == pytest.approx([0.2] * 4 + [0.7])


def test_triton_runs_the_model_first_that_has_run_least() -> None:
    first, second, other = request(), request(at=0.1), request(at=0.15, context=B)
    run(Triton, FLAT, [first, second, other])
    assert other.ended_at < second.ended_at


def test_triton_drops_late_requests_only_if_callers_send_a_timeout() -> None:
    def arrivals() -> list[Request]:
        return [request(), request(at=0.01, timeout_s=0.1)]

    with_timeout, without = arrivals(), arrivals()
    assert run(triton(knows_deadlines=True), FLAT, with_timeout).num_batches == 1
    assert run(Triton, FLAT, without).num_batches == 2
    assert with_timeout[1].outcome is Outcome.EXPIRED
    assert without[1].outcome is Outcome.ANSWERED


def test_bentoml_learns_the_line_of_requests_not_of_rows() -> None:
    optimizer = Optimizer(60.0)
    for num_requests in range(1, 30):
        optimizer.log(num_requests, 0.0, 0.010 + 0.002 * num_requests, float(5 * num_requests))
    assert optimizer.per_request_s == pytest.approx(0.002)
    assert optimizer.fixed_s == pytest.approx(0.010)
    assert not optimizer.is_training

    # one request of many rows makes all of them look slow
    optimizer.log(1, 0.0, 1.0, 1000.0)
    assert optimizer.fixed_s > 0.05


def test_bentoml_sheds_its_oldest_when_the_prediction_is_too_late() -> None:
    build: Build = lambda setup: BentoML(setup, BentoSettings(16, 0.5))  # noqa: E731
    training = [request(at=float(number)) for number in range(12)]
    crowd = [request(at=20.0) for _ in range(200)]
    run(build, LINEAR, [*training, *crowd])
    assert outcomes(training) == [Outcome.ANSWERED] * 12
    assert Outcome.REFUSED in outcomes(crowd)
    assert max(latencies([each for each in crowd if each.outcome is Outcome.ANSWERED])) < 0.6
