"""Many replicas behind a router that knows how many requests each replica has open.

Each replica is a whole server with its own queue. A request is never moved to another replica, and never sent again
after a refusal. So the cost of routing is a request that waits at one replica while another device idles.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.request import Request
from benchmarks.simulation.server import Server

Choose = Callable[["Cluster", Request], int]


def choose_randomly(cluster: Cluster, _: Request) -> int:
    """Any replica, with equal probability."""
    return cluster.rng.randrange(len(cluster.seen))


def choose_in_turn(cluster: Cluster, _: Request) -> int:
    """One replica after another."""
    return cluster.num_sent % len(cluster.seen)


def choose_least_outstanding(cluster: Cluster, _: Request) -> int:
    """HAProxy's `leastconn`; equal replicas take turns, as with HAProxy."""
    seen, start = cluster.seen, cluster.num_sent
    return min(range(len(seen)), key=lambda i: (seen[i], (i - start) % len(seen)))


def choose_by_power_of_two(cluster: Cluster, _: Request) -> int:
    """Ray Serve's router: of two replicas drawn at random, the one with fewer open requests."""
    seen = cluster.seen
    if len(seen) == 1:
        return 0
    first, second = cluster.rng.sample(range(len(seen)), 2)
    return first if seen[first] <= seen[second] else second


def choose_by_context(cluster: Cluster, request: Request) -> int:
    """One replica for each context, so that its rows share batches, however uneven the load becomes."""
    return request.context.index % len(cluster.seen)


ROUTERS: dict[str, Choose] = {
    "random": choose_randomly,
    "round robin": choose_in_turn,
    "least outstanding": choose_least_outstanding,
    "power of two": choose_by_power_of_two,
    "by context": choose_by_context,
}


class Cluster:
    """Replicas, and the number of open requests of each as the router sees it.

    Args:
        stale_s: the router learns the true numbers once in this time, and in between does not even count its own
            requests, like one of several routers that do not know of each other. 0: it always knows the true numbers.
    """

    def __init__(
        self, clock: VirtualClock, servers: Sequence[Server], router: str, stale_s: float = 0.0, seed: int = 1
    ) -> None:
        self.rng = random.Random(seed)
        self.num_sent = 0
        self._clock = clock
        self._servers = servers
        self._choose = ROUTERS[router]
        self._stale_s = stale_s
        self._outstanding = [0] * len(servers)
        self.seen = list(self._outstanding) if stale_s else self._outstanding
        self._seen_at = 0.0

    def accept(self, request: Request) -> None:
        """A caller sends a request to the router now."""
        now = self._clock.now
        if self._stale_s and now - self._seen_at >= self._stale_s:
            self.seen[:] = self._outstanding
            self._seen_at = now
        request.replica = self._choose(self, request)
        self.num_sent += 1
        self._outstanding[request.replica] += 1
        self._servers[request.replica].accept(request)

    def on_end(self, request: Request) -> None:
        """A request has its outcome."""
        self._outstanding[request.replica] -= 1
