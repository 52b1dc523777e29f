"""Routers: the replica that each chooses, also from stale numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_harness import CONTEXTS, request

from benchmarks.simulation.cell import Load, simulate
from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.cluster import ROUTERS, Cluster
from benchmarks.simulation.contenders import TABPFN_SERVE
from benchmarks.simulation.device import Device
from benchmarks.simulation.request import Request
from benchmarks.simulation.server import Server, Setup
from benchmarks.simulation.unbatched import Unbatched

FLAT = Device("flat", 1.0, 0.0, 16, 60.0, is_padded=False)


def route(router: str, requests: list[Request], num_replicas: int = 4, stale_s: float = 0.0) -> Cluster:
    clock = VirtualClock()
    cluster: Cluster
    servers: list[Server] = [
        Unbatched(Setup(clock, FLAT, CONTEXTS, lambda each: cluster.on_end(each))) for _ in range(num_replicas)
    ]
    cluster = Cluster(clock, servers, router, stale_s)
    clock.run(requests, cluster.accept)
    return cluster


def chosen(requests: list[Request]) -> Counter[int]:
    return Counter(each.replica for each in requests)


@pytest.mark.parametrize("router", ROUTERS)
@given(times=st.lists(st.floats(0, 5), max_size=40), num_replicas=st.integers(1, 5))
def test_every_request_gets_an_outcome_from_one_replica(router: str, times: list[float], num_replicas: int) -> None:
    requests = [request(at=time, context=CONTEXTS[0]) for time in sorted(times)]
    cluster = route(router, requests, num_replicas)
    assert cluster.seen == [0] * num_replicas
    assert all(each.outcome is not None and 0 <= each.replica < num_replicas for each in requests)


def test_least_outstanding_lets_no_request_wait_while_a_replica_idles() -> None:
    requests = [request(at=0.3 * number) for number in range(40)]
    route("least outstanding", requests)
    assert all(each.ended_at - each.arrived_at == pytest.approx(1.0) for each in requests)


def test_round_robin_and_by_context() -> None:
    requests = [request(at=float(number), context=CONTEXTS[number % 3]) for number in range(12)]
    route("round robin", requests)
    assert chosen(requests) == {0: 3, 1: 3, 2: 3, 3: 3}
    requests = [request(at=float(number), context=CONTEXTS[number % 3]) for number in range(12)]
    route("by context", requests)
    assert all(each.replica == each.context.index for each in requests)


def test_power_of_two_takes_the_shorter_of_two() -> None:
    """With two replicas both are drawn, so the choice is the least outstanding."""
    requests = [request(at=0.6 * number) for number in range(20)]
    route("power of two", requests, num_replicas=2)
    assert max(each.ended_at - each.arrived_at for each in requests) == pytest.approx(1.0)


def test_stale_numbers_send_everyone_to_the_same_replica() -> None:
    requests = [request()] + [request(at=0.01 * number) for number in range(1, 9)]
    route("least outstanding", requests, num_replicas=2, stale_s=5.0)
    fresh = [request()] + [request(at=0.01 * number) for number in range(1, 9)]
    route("least outstanding", fresh, num_replicas=2)
    assert max(each.ended_at for each in fresh) == pytest.approx(5.0, abs=0.1)
    # replicas with equal numbers take turns, so stale numbers do harm only once they differ
    assert chosen(requests) == {0: 5, 1: 4}
    later = [*requests_of_unequal_numbers()]
    route("least outstanding", later, num_replicas=2, stale_s=0.5)
    assert len(chosen(later[3:])) == 1


def requests_of_unequal_numbers() -> list[Request]:
    return [request(), request(at=0.1), request(at=0.2), *(request(at=0.6 + 0.01 * n) for n in range(6))]


def test_more_replicas_behind_a_good_router_are_no_worse_than_one() -> None:
    one = Load("gpu", "1-100 rows", load=0.8, num_requests=3000)
    eight = replace(one, num_replicas=8, num_requests=24_000)
    alone, many = (simulate(TABPFN_SERVE, load).result for load in (one, eight))
    herded = simulate(TABPFN_SERVE, replace(eight, stale_s=0.1)).result
    assert many["goodput_share"] == 1.0
    assert many["latency"]["p99_ms"] < 1.1 * alone["latency"]["p99_ms"]
    assert herded["goodput_share"] < 0.9
