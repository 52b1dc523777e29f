"""Callers that each ask again as soon as they are answered: what a system can do, not how long its callers wait.

A closed loop slows down with the server, so its latencies flatter; latency under load is measured by the open loop.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.online.client import Exchange
from benchmarks.online.open_loop import no_collector
from benchmarks.online.target import Target


async def ask_repeatedly(target: Target, connections: int, duration_s: float) -> list[Exchange]:
    """The requests of `connections` callers that ended within `duration_s`. Raises OSError."""
    client = target.client(connections)
    await client.open()
    ended: list[Exchange] = []

    async def ask_again(first: int, end: float) -> None:
        number = first
        while time.monotonic() < end:
            record = number % len(target.requests)
            ended.append(await client.ask(target.requests[record], record))
            number += connections

    try:
        with no_collector():  # it collects before the clock starts
            end = time.monotonic() + duration_s
            await asyncio.gather(*(ask_again(number, end) for number in range(connections)))
    finally:
        await client.close()
    return [exchange for exchange in ended if exchange.finished <= end]


async def answers_per_s(target: Target, connections: int, duration_s: float) -> float:
    """Answers 200 per second; a search for the highest rate begins near it."""
    ended = await ask_repeatedly(target, connections, duration_s)
    return sum(exchange.status == 200 for exchange in ended) / duration_s
