"""The load generator in one process or several: each sends its share of one schedule at the same moments.

The schedule is drawn by rate and seed and dealt out like cards (process i sends requests i, i + n, i + 2n ...), so that
the load is the same whatever the number of processes. All count time by CLOCK_MONOTONIC, which they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import uvloop

from benchmarks.online.arrivals import ARRIVALS, draw_records
from benchmarks.online.client import Client
from benchmarks.online.offer import no_collector, send_on_time
from benchmarks.online.tally import LateWatch, Tally, merge, tally

_HEADROOM_S = 0.05
_HEADROOM_OF_PROCESSES_S = 0.3


@dataclass(frozen=True)
class Target:
    """One server, what is posted to it, and what some of that is answered alone (`alone`, by the request's number)."""

    host: str
    port: int
    requests: Sequence[bytes]
    alone: Mapping[int, Sequence[float]]
    tolerance: float

    def client(self, connections: int, max_connections: int = 1024, timeout_s: float = 30.0) -> Client:
        return Client(
            self.host, self.port, connections=connections, max_connections=max_connections, timeout_s=timeout_s
        )


@dataclass(frozen=True)
class Offer:
    """One rate, offered for a while.

    Attributes:
        allowed_late: with more than these the offer is broken off; None offers all of it in any case.
    """

    rate: float
    duration_s: float
    warmup_s: float = 1.0
    bound_ms: float = 100.0
    allowed_late: int | None = None
    arrivals: str = "poisson"
    seed: int = 1
    connections: int = 64
    max_connections: int = 1024
    timeout_s: float = 10.0

    def draw(self) -> list[float]:
        """Due times of the whole offer, in seconds."""
        due = ARRIVALS[self.arrivals](self.rate, self.warmup_s + self.duration_s, self.seed)
        return [float(at) for at in due]


def raise_priority(nice: int) -> None:
    """Of this process and those that it starts from now on; without the right to, it stays as it is.

    Where generator and server share the cores of one machine, the generator is to be as punctual as one elsewhere.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except PermissionError:
        print(f"the generator may not raise its priority to nice {nice}", file=sys.stderr, flush=True)


class Generator:
    """`async with Generator(processes) as generator: await generator.offer(target, offer)`."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        if self.processes > 1:
            # spawned: a fork would inherit this process's event loop
            self._pool = ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn"))
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(self._pool, time.sleep, 0.2) for _ in range(self.processes)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    async def offer(self, target: Target, offer: Offer) -> Tally:
        """What became of it, all processes together. Takes the offer's time and that of the last answers."""
        if self._pool is None:
            return await send_share(target, offer, 0, 1, time.monotonic() + _HEADROOM_S)
        start = time.monotonic() + _HEADROOM_OF_PROCESSES_S
        loop = asyncio.get_running_loop()
        shares = (
            loop.run_in_executor(self._pool, _run_share, target, offer, number, self.processes, start)
            for number in range(self.processes)
        )
        return merge(await asyncio.gather(*shares))


def _run_share(target: Target, offer: Offer, number: int, processes: int, start: float) -> Tally:
    """In a process of its own."""
    own = replace(
        offer,
        connections=max(1, offer.connections // processes),
        max_connections=max(1, offer.max_connections // processes),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send_share(target, own, number, processes, start))


async def send_share(target: Target, offer: Offer, number: int, processes: int, start: float) -> Tally:
    """Process `number`'s part of an offer that begins at `start` (of `time.monotonic`)."""
    whole = offer.draw()
    order = draw_records(len(whole), len(target.requests), offer.seed)[number::processes]
    due = whole[number::processes]
    measured_from = start + offer.warmup_s
    watch = None if offer.allowed_late is None else LateWatch(offer.bound_ms, offer.allowed_late, measured_from)
    client = target.client(offer.connections, offer.max_connections, offer.timeout_s)
    try:
        with contextlib.suppress(OSError):  # every exchange then says so
            await client.open()
        with no_collector():
            exchanges = await send_on_time(client, due, order, target.requests, start=start, is_hopeless=watch)
            # also after breaking off: callers who hang up by the hundred are another load, and may wedge a server
            await client.drain()
    finally:
        await client.close()
    measured = [exchange for exchange, at in zip(exchanges, due, strict=False) if at >= offer.warmup_s]
    seen = tally(
        measured,
        scheduled=sum(at >= offer.warmup_s for at in due),
        bound_ms=offer.bound_ms,
        alone=target.alone,
        tolerance=target.tolerance,
    )
    seen.answered = sum(exchange.status > 0 for exchange in exchanges)
    seen.connections = client.num_opened
    seen.stopped_early = len(exchanges) < len(due)
    return seen
