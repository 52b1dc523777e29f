"""The grid of a run: the loads of every experiment, and the policies that meet them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.simulation.cell import Load
from benchmarks.simulation.contenders import TABPFN_SERVE, WITH_DEFAULTS, Contender
from benchmarks.simulation.device import DEVICES

LOADS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5)
BURSTY_LOADS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
NUM_CONTEXTS = (1, 5, 20, 100, 500)
NUM_REPLICAS = (1, 2, 4, 8, 16)
ROUTES = (
    ("random", 0.0),
    ("round robin", 0.0),
    ("least outstanding", 0.0),
    ("power of two", 0.0),
    ("least outstanding", 0.02),
    ("power of two", 0.02),
    ("power of two", 0.1),
)
"""(router, age of its numbers in seconds)."""
ALONE_FACTOR = 1.2
"""The rate with many contexts, as a multiple of the one-row requests that a device answers without batching."""
REPLICA_LOAD = 0.8
BULK_LOAD = 0.4
NUM_BULK_CLIENTS = 4
SOAK_LOADS = (0.1, 0.5, 0.9)
TUNED_FOR = {"gpu": "gpu", "gpu, times scatter": "gpu", "cpu-demo": "cpu-demo", "fake": "fake"}
"""For each device, the device for which its peers are tuned."""

Run = tuple[str, Load, Sequence[Contender]]
"""(experiment, load, the policies that meet the load)."""


def plan(names: Sequence[str], num_requests: int, seed: int, tuned: dict[str, list[Contender]]) -> Iterator[Run]:
    """Every run of the named experiments.

    Args:
        num_requests: of a run whose load says 1; other loads state multiples of it.
        tuned: by device, the tuned peers.
    """
    for name in names:
        for load in EXPERIMENTS[name]():
            load = replace(load, seed=seed, num_requests=max(1, round(num_requests * load.num_requests)))
            contenders = (TABPFN_SERVE,) if name in WITHOUT_PEERS else (*WITH_DEFAULTS, *tuned[TUNED_FOR[load.device]])
            yield name, load, contenders


def latency_and_goodput() -> Iterator[Load]:
    """From idle to overload."""
    for load in LOADS:
        for device in ("gpu", "cpu-demo"):
            for mix in ("1 row", "1-100 rows", "mixed"):
                yield Load(device, mix, load=load, num_requests=1)
        for device in ("gpu, times scatter", "fake"):
            yield Load(device, "1-100 rows", load=load, num_requests=1)
    for load in BURSTY_LOADS:
        # a burst comes a little less than once in two seconds, and a run needs many of them
        yield Load("gpu", "1-100 rows", load=load, arrivals="bursty", num_requests=10)


def many_contexts() -> Iterator[Load]:
    """The same rate over more and more contexts, whose rows cannot be joined; popularity follows Zipf's law."""
    for device in ("gpu", "cpu-demo"):
        rate = ALONE_FACTOR * DEVICES[device].capacity_alone
        for num_contexts in NUM_CONTEXTS:
            yield Load(device, "1 row", rate=rate, num_contexts=num_contexts, num_requests=2)


def bulk() -> Iterator[Load]:
    """Interactive one-row requests beside bulk callers that never pause; each kind also without the other."""
    for device in ("gpu", "cpu-demo"):
        interactive = Load(device, "1 row", load=BULK_LOAD, num_requests=5, shortest_s=4.0)
        yield interactive
        yield replace(interactive, num_bulk_clients=NUM_BULK_CLIENTS)
        # bulk alone, but for a single row now and then
        rate = 0.001 * DEVICES[device].capacity_alone
        yield Load(device, "1 row", rate=rate, num_bulk_clients=NUM_BULK_CLIENTS, num_requests=0, shortest_s=120.0)


def replicas() -> Iterator[Load]:
    """The cost of routing: the load of each replica is the same for every number of replicas."""
    for num_replicas in NUM_REPLICAS:
        for router, stale_s in ROUTES if num_replicas > 1 else ROUTES[:1]:
            yield Load(
                "gpu", "1-100 rows", load=REPLICA_LOAD, num_replicas=num_replicas, router=router, stale_s=stale_s,
                num_requests=num_replicas,
            )  # fmt: skip


def replicas_and_contexts() -> Iterator[Load]:
    """500 contexts on eight replicas, spread over all of them or each on one replica."""
    rate = 8 * ALONE_FACTOR * DEVICES["gpu"].capacity_alone
    for router in ("random", "least outstanding", "power of two", "by context"):
        yield Load("gpu", "1 row", rate=rate, num_contexts=500, num_replicas=8, router=router, num_requests=8)


def soak() -> Iterator[Load]:
    """Days of a slow server, which show rare events."""
    for load in SOAK_LOADS:
        yield Load("cpu-full", "mixed", load=load, num_requests=12)


EXPERIMENTS = {
    "load": latency_and_goodput,
    "contexts": many_contexts,
    "bulk": bulk,
    "replicas": replicas,
    "replicas and contexts": replicas_and_contexts,
    "soak": soak,
}
WITHOUT_PEERS = ("replicas", "replicas and contexts", "soak")
"""Experiments with tabpfn-serve alone."""
