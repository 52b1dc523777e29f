"""The numbers of a run, and the loads that a run offers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_harness import BULK, A, B, request

from benchmarks.simulation.bulk_clients import BulkClients
from benchmarks.simulation.cell import Load, simulate
from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.contenders import TABPFN_SERVE, UNBATCHED, WITH_DEFAULTS
from benchmarks.simulation.device import DEVICES
from benchmarks.simulation.measure import jain, measure
from benchmarks.simulation.request import Context, Outcome, Request
from benchmarks.simulation.server import Setup
from benchmarks.simulation.unbatched import Unbatched
from benchmarks.simulation.workload import MIXED, MIXES, ONE_ROW, TO_100_ROWS, draw_requests
from serve.core import Priority

GPU = DEVICES["gpu"]


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=20))
def test_jain_is_between_one_of_n_and_one(values: list[float]) -> None:
    index = jain(values)
    assert index is not None
    assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9
    assert jain([values[0]] * len(values)) == pytest.approx(1)


def test_jain_of_one_value_among_zeros_and_of_nothing() -> None:
    assert jain([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([0.0, 0.0]) is None
    assert jain([]) is None


def ended(each: Request, outcome: Outcome | None, after_s: float) -> Request:
    each.outcome = outcome
    each.ended_at = each.arrived_at + after_s
    return each


def test_every_request_is_counted_once() -> None:
    requests = [
        ended(request(timeout_s=1.0), Outcome.ANSWERED, 0.5),
        ended(request(timeout_s=1.0, num_rows=50, context=B), Outcome.ANSWERED, 2.0),
        ended(request(timeout_s=1.0), Outcome.EXPIRED, 1.0),
        ended(request(timeout_s=1.0), Outcome.REFUSED, 0.0),
        ended(request(timeout_s=9.0, num_rows=1000, priority=BULK), Outcome.ANSWERED, 3.0),
        request(),
    ]
    numbers = measure(requests, 3, duration_s=2.0)
    assert numbers["offered"] == 6
    assert numbers["outcomes"] == {"answered": 3, "expired": 1, "refused": 1, "failed": 0}
    assert numbers["late"] == numbers["lost"] == 1
    assert numbers["goodput_per_s"] == 1.0
    assert numbers["goodput_rows_per_s"] == 500.5
    assert numbers["latency"]["n"] == 4  # the answers and the expired request; not the refused one, not the lost one
    assert numbers["interactive"]["p99_ms"] == 2000.0
    assert numbers["bulk"] == {
        "offered": 1, "goodput_share": 1.0, "n": 1, "p50_ms": 3000.0, "p90_ms": 3000.0, "p99_ms": 3000.0,
        "p99_reliable": False, "max_ms": 3000.0, "rows_per_s": 500.0,
    }  # fmt: skip
    assert set(numbers["by_rows"]) == {"1", "11-100", "over 100"}
    fairness = numbers["fairness"]
    assert fairness["contexts"] == 2
    assert fairness["min_max_goodput"] == 0.0
    assert fairness["head"]["offered"] == 5


def test_nothing_measured_is_no_error() -> None:
    numbers = measure([], 1, duration_s=1.0)
    assert numbers["offered"] == 0
    assert numbers["goodput_share"] is None
    assert numbers["latency"]["p99_ms"] is None


# --- loads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrivals", ["poisson", "bursty"])
def test_an_open_loop_has_the_stated_rate_sizes_and_popularity(arrivals: str) -> None:
    contexts = [Context(index) for index in range(10)]
    requests = draw_requests(MIXED, GPU, contexts, rate=1000.0, duration_s=100.0, arrivals=arrivals)
    assert len(requests) == pytest.approx(100_000, rel=0.1)
    times = [each.arrived_at for each in requests]
    assert times == sorted(times)
    assert np.mean([each.num_rows for each in requests]) == pytest.approx(MIXED.mean_rows, rel=0.05)
    requested = np.bincount([each.context.index for each in requests])
    assert requested[0] / requested[4] == pytest.approx(5.0, rel=0.1)
    bulk = [each for each in requests if each.priority is Priority.BULK]
    assert len(bulk) / len(requests) == pytest.approx(0.02, rel=0.1)
    assert {each.num_rows for each in bulk} == {1000}
    assert {round(each.deadline - each.arrived_at, 6) for each in bulk} == {30.0}


def test_mean_rows() -> None:
    assert [ONE_ROW.mean_rows, TO_100_ROWS.mean_rows] == [1.0, 50.5]
    assert set(MIXES) == {"1 row", "1-100 rows", "mixed"}


def test_bulk_clients_have_one_request_each_and_stop_with_the_load() -> None:
    clock = VirtualClock()
    server = Unbatched(Setup(clock, GPU, [A], lambda each: bulk.on_end(each)))
    bulk = BulkClients(clock, A, 3, until=1.0, accept=server.accept)
    clock.run([], server.accept)
    assert all(each.outcome is Outcome.ANSWERED for each in bulk.sent)
    assert bulk.measure(0.0)["rows_per_s"] == pytest.approx(1000 / GPU.seconds(1000), rel=0.05)
    assert bulk.measure(0.0)["not_answered"] == 0
    assert clock.now < 1.0 + 4 * GPU.seconds(1000)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contender", WITH_DEFAULTS, ids=[each.name for each in WITH_DEFAULTS])
def test_the_same_seed_gives_the_same_numbers_and_another_one_others(contender: object) -> None:
    load = Load("gpu", "mixed", load=0.7, num_contexts=5, num_requests=500)
    first, again = (simulate(contender, load).result for _ in range(2))  # type: ignore[arg-type]
    assert first == again
    assert first["lost"] == 0
    other = simulate(contender, replace(load, seed=2)).result  # type: ignore[arg-type]
    assert other["latency"] != first["latency"]


def test_no_batching_is_full_at_the_rate_of_one_row_alone() -> None:
    rate = DEVICES["cpu-demo"].capacity_alone
    calm = simulate(UNBATCHED, Load("cpu-demo", "1 row", rate=0.5 * rate, num_requests=4000)).result
    assert calm["busy_share"] == pytest.approx(0.5, rel=0.05)
    assert calm["goodput_share"] == 1.0
    full = simulate(UNBATCHED, Load("cpu-demo", "1 row", rate=1.5 * rate, num_requests=4000)).result
    assert full["busy_share"] > 0.99
    assert full["goodput_share"] < 0.5


@pytest.mark.parametrize("device", ["gpu", "cpu-demo", "fake"])
def test_at_twice_the_capacity_tabpfn_serve_keeps_nine_tenths_of_its_peak(device: str) -> None:
    """Goodput is at least 90 % of the peak, and no admitted request is lost."""
    rates = []
    for load in (0.75, 0.9, 1.0, 2.0):
        result = simulate(TABPFN_SERVE, Load(device, "1-100 rows", load=load, num_requests=6000)).result
        assert result["lost"] == 0
        rates.append(result["goodput_rows_per_s"])
    assert rates[-1] >= 0.9 * max(rates)
