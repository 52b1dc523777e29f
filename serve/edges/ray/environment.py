"""The environment of Ray, which it reads once, while it is imported: set all this before `import ray`.

A variable that the operator has set already is left alone, unless it belongs to the one launch (ports, files).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping

LONE_REPLICA = "TABPFN_LONE_REPLICA"
"""Set where the only replica listens itself, so that no other application can replace it."""
LAUNCHER_OUTPUT = "TABPFN_LAUNCHER_OUTPUT"
"""Path of the launcher's standard output."""

RAY_ENVIRONMENT: Mapping[str, str] = {
    # Everything of Ray on 127.0.0.1. Only with this does `get_node_ip_address` return the loopback on Linux (the name
    # tells where Ray itself uses it); every other way is turned into the interface's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A token even on the loopback: Ray's default for new clusters. Said here, because the default also warns.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # One hop: HAProxy straight to the replica, which serves HTTP on its one event loop.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Without it a soft stop leaves one or two connections open, which were answered just before it and are idle since.
    "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "1",
    # A caller that stalls in the middle of a request is cut off; the default is an hour.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # Replicas are called by handle from threads and from other event loops; no prediction goes by a handle.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    # A replica that is replaced stays reachable this long after it was taken out of HAProxy's list. The default, 30 s,
    # is for load balancers outside; HAProxy hears of it within a second.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    # Ray starts its workers at niceness 15. A replica would then yield to every other process of the machine: beside
    # one busy neighbour on two cores it answered 25 to 116 requests a second in place of 687.
    "RAY_worker_niceness": "0",
    # Ray writes to its own files in /tmp/ray/session_latest/logs; the terminal is for the server's lines.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_DEDUP_LOGS": "0",
}


LONE_REPLICA_ENVIRONMENT: Mapping[str, str] = {
    # The only replica listens itself: no HAProxy, and no server of Ray's in the replica.
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    LONE_REPLICA: "1",
}


def drain_environment(drain_s: float) -> dict[str, str]:
    """The variables that keep Ray from cutting a shutdown short that takes `drain_s` in all."""
    return {
        # While HAProxy finishes its last requests it answers no health check; at the third in a row that fails, twice
        # this period after the first, Ray would kill it and start another.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(max(10, math.ceil(drain_s / 2))),
        # When HAProxy gives up on its last connections by itself.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(120, math.ceil(drain_s))),
    }


def set_environment(environment: MutableMapping[str, str], drain_s: float, own: Mapping[str, str]) -> None:
    """Add the defaults that are missing, and set `own`, which belongs to this one launch, in any case."""
    for name, value in {**RAY_ENVIRONMENT, **drain_environment(drain_s)}.items():
        environment.setdefault(name, value)
    environment.update(own)
