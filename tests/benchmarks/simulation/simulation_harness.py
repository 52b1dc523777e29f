"""Scripted arrivals for the tests of the simulated policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.device import Device
from benchmarks.simulation.request import Context, Outcome, Request
from benchmarks.simulation.server import Server, Setup
from serve.core import Priority

CONTEXTS = [Context(index) for index in range(3)]
A, B = CONTEXTS[:2]
BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE

Build = Callable[[Setup], Server]


def request(
    at: float = 0.0,
    num_rows: int = 1,
    context: Context = A,
    priority: Priority = INTERACTIVE,
    timeout_s: float = math.inf,
) -> Request:
    return Request(context, num_rows, priority, at, at + timeout_s)


ARRIVALS = st.lists(
    st.builds(
        request,
        at=st.integers(0, 40).map(lambda hundredths: hundredths / 100),
        num_rows=st.one_of(st.integers(1, 12), st.integers(13, 45)),
        context=st.sampled_from(CONTEXTS),
        priority=st.sampled_from([INTERACTIVE, INTERACTIVE, BULK]),
        timeout_s=st.sampled_from([0.02, 0.1, 1.0, 60.0]),
    ),
    max_size=25,
)


def run(build: Build, device: Device, requests: Sequence[Request]) -> Server:
    """Run until every request has ended; returns the server, which counted its batches."""
    clock = VirtualClock()
    server = build(Setup(clock, device, CONTEXTS))
    clock.run(requests, server.accept)
    return server


def latencies(requests: Sequence[Request]) -> list[float]:
    return [each.ended_at - each.arrived_at for each in requests]


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def outcomes(requests: Sequence[Request]) -> list[Outcome | None]:
    return [each.outcome for each in requests]
