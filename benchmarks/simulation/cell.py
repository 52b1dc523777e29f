"""One simulated run: one policy, one load, one device or several behind a router."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.percentiles import rounded
from benchmarks.simulation.bulk_clients import BulkClients
from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.cluster import Cluster
from benchmarks.simulation.contenders import Contender
from benchmarks.simulation.device import DEVICES
from benchmarks.simulation.measure import measure
from benchmarks.simulation.request import Context, Request
from benchmarks.simulation.server import OnEnd, Server, Setup
from benchmarks.simulation.workload import MIXES, draw_requests

WARM_UP_SHARE = 0.2
"""This share of a run's time comes first and is not counted."""
SHORTEST_IN_DEADLINES = 20.0
"""A run lasts at least this many deadlines, so that the queue of an overloaded server can grow."""


@dataclass(frozen=True)
class Load:
    """The load of one run.

    Attributes:
        load: offered rows per second, as a share of the rows that all devices can answer in full batches.
        rate: requests per second, instead of `load`.
        zipf: exponent of the contexts' popularity.
        stale_s: age of the router's numbers; see `Cluster`.
        num_requests: requests of the run, at least; a short run becomes longer by `SHORTEST_IN_DEADLINES`.
        shortest_s: the run lasts at least this long.
    """

    device: str
    mix: str
    load: float | None = None
    rate: float | None = None
    arrivals: str = "poisson"
    num_contexts: int = 1
    zipf: float = 1.0
    num_bulk_clients: int = 0
    num_replicas: int = 1
    router: str = "least outstanding"
    stale_s: float = 0.0
    num_requests: float = 10_000
    shortest_s: float = 0.0
    seed: int = 1

    @property
    def requests_per_s(self) -> float:
        """The offered rate."""
        if self.rate is not None:
            return self.rate
        assert self.load is not None, "a load is given as a share or as a rate"
        return self.load * self.num_replicas * DEVICES[self.device].capacity_rows / MIXES[self.mix].mean_rows

    @property
    def duration_s(self) -> float:
        """Virtual time in which requests arrive."""
        shortest_s = SHORTEST_IN_DEADLINES * DEVICES[self.device].deadline_s
        return max(self.num_requests / self.requests_per_s, shortest_s, self.shortest_s)

    @property
    def expected_requests(self) -> float:
        """Without those of bulk clients, whose number depends on the policy."""
        return self.requests_per_s * self.duration_s


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        result: its numbers, the same every time.
        wall_s, cpu_s: real time that the simulation took; simulated_s: time that passed on the virtual clock.
    """

    result: dict[str, Any]
    simulated_s: float
    wall_s: float
    cpu_s: float
    num_requests: int


def simulate(contender: Contender, load: Load) -> Finished:
    """Run one policy under one load, and measure the requests that arrived after the warm-up."""
    began, began_cpu = time.perf_counter(), time.process_time()
    contexts = [Context(index) for index in range(load.num_contexts)]
    requests = _draw(load, contexts)
    clock = VirtualClock()
    servers, accept, bulk = _build(contender, load, clock, contexts)
    clock.run(requests, accept)
    if bulk is not None:
        requests = requests + bulk.sent
    result = {
        "policy": contender.name,
        **asdict(load),
        "requests_per_s": rounded(load.requests_per_s),
        "simulated_s": rounded(clock.now),
        **_measure(load, clock.now, requests, servers),
    }
    if bulk is not None:
        result["bulk_clients"] = bulk.measure(WARM_UP_SHARE * load.duration_s)
    cpu_s = time.process_time() - began_cpu
    return Finished(result, clock.now, time.perf_counter() - began, cpu_s, len(requests))


def _draw(load: Load, contexts: Sequence[Context]) -> list[Request]:
    return draw_requests(
        MIXES[load.mix],
        DEVICES[load.device],
        contexts,
        rate=load.requests_per_s,
        duration_s=load.duration_s,
        arrivals=load.arrivals,
        zipf=load.zipf,
        seed=load.seed,
    )


def _build(
    contender: Contender, load: Load, clock: VirtualClock, contexts: Sequence[Context]
) -> tuple[list[Server], Callable[[Request], None], BulkClients | None]:
    """The servers, what takes a caller's request, and the bulk clients if the load has any."""
    listeners: list[OnEnd] = []

    def on_end(request: Request) -> None:
        for listener in listeners:
            listener(request)

    has_listeners = load.num_replicas > 1 or load.num_bulk_clients > 0
    setup = Setup(clock, DEVICES[load.device], contexts, on_end if has_listeners else None)
    servers = [contender.build(setup) for _ in range(load.num_replicas)]
    accept, bulk = servers[0].accept, None
    if load.num_replicas > 1:
        cluster = Cluster(clock, servers, load.router, load.stale_s, load.seed)
        listeners.append(cluster.on_end)
        accept = cluster.accept
    if load.num_bulk_clients:
        bulk = BulkClients(clock, contexts[0], load.num_bulk_clients, load.duration_s, accept)
        listeners.append(bulk.on_end)
    return servers, accept, bulk


def _measure(load: Load, ended_at: float, requests: Sequence[Request], servers: Sequence[Server]) -> dict[str, Any]:
    warm_s = WARM_UP_SHARE * load.duration_s
    measured = [request for request in requests if request.arrived_at >= warm_s]
    num_batches = sum(server.num_batches for server in servers)
    return {
        **measure(measured, load.num_contexts, load.duration_s - warm_s),
        "busy_share": rounded(sum(server.busy_s for server in servers) / (load.num_replicas * ended_at), 4),
        "mean_batch_rows": rounded(sum(server.num_batch_rows for server in servers) / max(1, num_batches)),
    }
