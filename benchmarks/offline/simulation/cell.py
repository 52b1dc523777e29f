"""One run: one policy, one load, one device (or several behind a router)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.offline.simulation.bulk_clients import BulkClients
from benchmarks.offline.simulation.clock import VirtualClock
from benchmarks.offline.simulation.cluster import Cluster
from benchmarks.offline.simulation.contenders import Contender
from benchmarks.offline.simulation.device import DEVICES
from benchmarks.offline.simulation.measure import measure
from benchmarks.offline.simulation.request import Context, Request
from benchmarks.offline.simulation.workload import MIXES, draw_requests
from benchmarks.percentiles import rounded

WARM_UP_SHARE = 0.2
"""So much of a run comes first and is not counted."""
SHORTEST_IN_DEADLINES = 20.0
"""A run lasts so many deadlines or more: an overload must have time to show."""


@dataclass(frozen=True)
class Load:
    """What is offered. `load`: of the rows per second of all devices in full batches; `rate`: requests per second
    instead of it."""

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
        if self.rate is not None:
            return self.rate
        assert self.load is not None, "a load is given as a share or as a rate"
        return self.load * self.num_replicas * DEVICES[self.device].capacity_rows / MIXES[self.mix].mean_rows

    @property
    def duration_s(self) -> float:
        shortest_s = SHORTEST_IN_DEADLINES * DEVICES[self.device].deadline_s
        return max(self.num_requests / self.requests_per_s, shortest_s, self.shortest_s)


@dataclass(frozen=True)
class Finished:
    """The numbers of a run, the same each time, and what it took to get them, which is not."""

    result: dict[str, Any]
    simulated_s: float
    wall_s: float
    cpu_s: float
    num_requests: int


def simulate(contender: Contender, load: Load) -> Finished:
    """Run one policy under one load, and measure what arrived after the warm-up."""
    began, began_cpu = time.perf_counter(), time.process_time()
    device = DEVICES[load.device]
    contexts = [Context(index) for index in range(load.num_contexts)]
    requests = draw_requests(
        MIXES[load.mix],
        device,
        contexts,
        rate=load.requests_per_s,
        duration_s=load.duration_s,
        arrivals=load.arrivals,
        zipf=load.zipf,
        seed=load.seed,
    )
    clock = VirtualClock()
    on_end: list[Any] = []

    def ended(request: Request) -> None:
        for told in on_end:
            told(request)

    is_told = load.num_replicas > 1 or load.num_bulk_clients > 0
    servers = [contender.build(clock, device, contexts, ended if is_told else None) for _ in range(load.num_replicas)]
    accept = servers[0].accept
    if load.num_replicas > 1:
        cluster = Cluster(clock, servers, load.router, load.stale_s, load.seed)
        on_end.append(cluster.on_end)
        accept = cluster.accept
    if load.num_bulk_clients:
        bulk = BulkClients(clock, contexts[0], load.num_bulk_clients, load.duration_s, accept)
        on_end.append(bulk.on_end)
    clock.run(requests, accept)
    warm_s = WARM_UP_SHARE * load.duration_s
    if load.num_bulk_clients:
        requests = requests + bulk.sent
    measured = [request for request in requests if request.arrived_at >= warm_s]
    num_batches = sum(server.num_batches for server in servers)
    result = {
        "policy": contender.name,
        **asdict(load),
        "requests_per_s": rounded(load.requests_per_s),
        "simulated_s": rounded(clock.now),
        **measure(measured, load.num_contexts, load.duration_s - warm_s),
        "busy_share": rounded(sum(server.busy_s for server in servers) / (load.num_replicas * clock.now), 4),
        "mean_batch_rows": rounded(sum(server.num_batch_rows for server in servers) / max(1, num_batches)),
    }
    if load.num_bulk_clients:
        result["bulk_clients"] = bulk.measure(warm_s)
    cpu_s = time.process_time() - began_cpu
    return Finished(result, clock.now, time.perf_counter() - began, cpu_s, len(requests))
