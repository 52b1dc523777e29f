"""The load generator of every online benchmark: one schedule, sent by one process or by several.

The steps are always the same: draw the due times (`arrivals.py`), send each request when it is due (`open_loop.py`,
`client.py`), count the outcomes (`tally.py`), summarise the counts (`summary.py`).

What is always true:
- the schedule depends on the rate and the seed alone. N processes split it like a dealt pack of cards: process i sends
  requests i, i + N, i + 2N, ... So the load does not depend on N;
- latency counts from the due time. All processes read the same clock, CLOCK_MONOTONIC;
- a server that is down is a result: each request then ends with the error of its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import uvloop

from benchmarks.online.arrivals import ARRIVALS, draw_records
from benchmarks.online.client import Exchange
from benchmarks.online.open_loop import HEADROOM_S, no_collector, send_on_time
from benchmarks.online.tally import LateWatch, Tally, merge, tally
from benchmarks.online.target import Target

_HEADROOM_OF_PROCESSES_S = 0.3


@dataclass(frozen=True)
class Offer:
    """Requests at one rate for a while. The warm-up comes first, at the same rate and without a gap; it is not counted.

    Attributes:
        bound_ms: a request that is not answered 200 within this time of its due time is late.
        allowed_late: the offer ends early once more requests than this are late; None: the offer never ends early.
        max_connections: connections are opened on demand up to this number, so that the load stays open.
        timeout_s: a request is given up this long after its due time.
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
        """Due times in seconds from the start, warm-up included."""
        due = ARRIVALS[self.arrivals](self.rate, self.warmup_s + self.duration_s, self.seed)
        return [float(at) for at in due]


def raise_priority(nice: int | None) -> None:
    """Set the nice value of this process and of those that it starts later, where the system permits it.

    On a machine that generator and server share, the generator then is as punctual as one on another machine.
    """
    if nice is None:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except PermissionError:
        print(f"no permission to set the load generator's nice value to {nice}; going on", file=sys.stderr, flush=True)


class Generator:
    """`async with Generator(processes) as generator: await generator.offer(target, offer)`."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        if self.processes > 1:
            # spawned, because a forked process would inherit this process's event loop
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
        """Send the offer, and return the outcomes of all processes together after the last answer."""
        if self._pool is None:
            return await send_share(target, offer)
        start = time.monotonic() + _HEADROOM_OF_PROCESSES_S
        loop = asyncio.get_running_loop()
        shares = (
            loop.run_in_executor(self._pool, _run_share, target, offer, number, self.processes, start)
            for number in range(self.processes)
        )
        return merge(await asyncio.gather(*shares))


def _run_share(target: Target, offer: Offer, number: int, processes: int, start: float) -> Tally:
    """One process's share, in that process."""
    own = replace(
        offer,
        connections=max(1, offer.connections // processes),
        max_connections=max(1, offer.max_connections // processes),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send_share(target, own, number, processes, start))


async def send_share(
    target: Target, offer: Offer, number: int = 0, processes: int = 1, start: float | None = None
) -> Tally:
    """Send the share of process `number` and count the outcomes.

    Args:
        start: time of `time.monotonic` at which the schedule begins. By default it begins once the connections are
            open, so that opening them delays no request.
    """
    whole = offer.draw()
    due = whole[number::processes]
    order = draw_records(len(whole), len(target.requests), offer.seed)[number::processes]
    client = target.client(offer.connections, offer.max_connections, offer.timeout_s)
    try:
        with contextlib.suppress(OSError):  # a server that is down: each exchange then ends with that error
            await client.open()
        with no_collector():
            start = time.monotonic() + HEADROOM_S if start is None else start
            watch = _watch(offer, start)
            exchanges = await send_on_time(client, due, order, target.requests, start=start, is_hopeless=watch)
            # Awaited also after an early end: hundreds of callers that hang up are another load, and may wedge a
            # server.
            await client.drain()
    finally:
        await client.close()
    return _count(target, offer, due, exchanges, client.num_opened)


def _watch(offer: Offer, start: float) -> LateWatch | None:
    if offer.allowed_late is None:
        return None
    return LateWatch(offer.bound_ms, offer.allowed_late, start + offer.warmup_s)


def _count(target: Target, offer: Offer, due: list[float], exchanges: list[Exchange], num_connections: int) -> Tally:
    seen = tally(
        [exchange for exchange, at in zip(exchanges, due, strict=False) if at >= offer.warmup_s],
        scheduled=sum(at >= offer.warmup_s for at in due),
        bound_ms=offer.bound_ms,
        alone=target.alone,
        tolerance=target.tolerance,
    )
    seen.answered_with_warmup = sum(exchange.status > 0 for exchange in exchanges)
    seen.connections = num_connections
    seen.stopped_early = len(exchanges) < len(due)
    return seen
