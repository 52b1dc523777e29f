"""The grid: which loads are run against which policies, and what each experiment is to tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.offline.simulation.cell import Load
from benchmarks.offline.simulation.contenders import AS_THEY_COME, OURS, Contender
from benchmarks.offline.simulation.device import DEVICES

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
"""(router, seconds between two looks at the replicas)."""
ALONE_FACTOR = 1.2
"""Many contexts are asked for at so many times the rate at which a device answers without batching."""
REPLICA_LOAD = 0.8
BULK_LOAD = 0.4
NUM_BULK_CLIENTS = 4
SOAK_LOADS = (0.1, 0.5, 0.9)
TUNED_FOR = {"gpu": "gpu", "gpu, times scatter": "gpu", "cpu-demo": "cpu-demo", "fake": "fake"}
"""By device, for which one the peers were tuned that serve it."""

Run = tuple[str, Load, Sequence[Contender]]
"""(experiment, load, who is put under it)."""


def plan(names: Sequence[str], num_requests: int, seed: int, tuned: dict[str, list[Contender]]) -> Iterator[Run]:
    """Every run of the named experiments."""
    for name in names:
        for load in EXPERIMENTS[name]():
            load = replace(load, seed=seed, num_requests=max(1, round(num_requests * load.num_requests)))
            contenders = (OURS,) if name in OURS_ALONE else (*AS_THEY_COME, *tuned[TUNED_FOR[load.device]])
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
        # a run must see many bursts, of which there are not quite one in two seconds
        yield Load("gpu", "1-100 rows", load=load, arrivals="bursty", num_requests=10)


def many_contexts() -> Iterator[Load]:
    """The same rate over ever more contexts, whose rows can not be joined; the popular ones are asked for much more."""
    for device in ("gpu", "cpu-demo"):
        rate = ALONE_FACTOR * DEVICES[device].capacity_alone
        for num_contexts in NUM_CONTEXTS:
            yield Load(device, "1 row", rate=rate, num_contexts=num_contexts, num_requests=2)


def bulk() -> Iterator[Load]:
    """Interactive one-row requests beside bulk callers who never rest; each also without the other."""
    for device in ("gpu", "cpu-demo"):
        interactive = Load(device, "1 row", load=BULK_LOAD, num_requests=5, shortest_s=4.0)
        yield interactive
        yield replace(interactive, num_bulk_clients=NUM_BULK_CLIENTS)
        # as good as alone: a single row now and then
        rate = 0.001 * DEVICES[device].capacity_alone
        yield Load(device, "1 row", rate=rate, num_bulk_clients=NUM_BULK_CLIENTS, num_requests=0, shortest_s=120.0)


def replicas() -> Iterator[Load]:
    """What routing costs: each replica has the same load, however many there are."""
    for num_replicas in NUM_REPLICAS:
        for router, stale_s in ROUTES if num_replicas > 1 else ROUTES[:1]:
            yield Load(
                "gpu", "1-100 rows", load=REPLICA_LOAD, num_replicas=num_replicas, router=router, stale_s=stale_s,
                num_requests=num_replicas,
            )  # fmt: skip


def replicas_and_contexts() -> Iterator[Load]:
    """500 contexts over eight replicas: spread, so that rows meet more seldom, or each at one place of its own."""
    rate = 8 * ALONE_FACTOR * DEVICES["gpu"].capacity_alone
    for router in ("random", "least outstanding", "power of two", "by context"):
        yield Load("gpu", "1 row", rate=rate, num_contexts=500, num_replicas=8, router=router, num_requests=8)


def soak() -> Iterator[Load]:
    """Days of a slow server, to see what is rare."""
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
OURS_ALONE = ("replicas", "replicas and contexts", "soak")
