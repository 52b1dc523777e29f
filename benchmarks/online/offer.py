"""Send a schedule on time, whatever becomes of the answers: the open loop itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.online.arrivals import ARRIVALS, draw_records
from benchmarks.online.client import Client, Exchange
from benchmarks.online.options import LoadOptions
from benchmarks.online.pacer import Pacer

_SENDS_PER_TURN = 32
_HEADROOM_S = 0.05


async def offer_rate(options: LoadOptions, rate: float, requests: Sequence[bytes]) -> tuple[list[Exchange], int]:
    """Warm-up and measurement at one rate without a gap between them.

    Returns the measured exchanges, all ended, and how many connections were opened. A server that went away between two
    rates is a result too: every exchange then says that it could not connect.
    """
    due = ARRIVALS[options.arrivals](rate, options.warmup + options.duration, options.seed)
    order = draw_records(len(due), len(requests), options.seed)
    client = options.client(options.connections)
    try:
        with contextlib.suppress(OSError):
            await client.open()
        with no_collector():
            exchanges = await send_on_time(client, due.tolist(), order, requests)
            await client.drain()
    finally:
        await client.close()
    measured = [exchange for exchange, at in zip(exchanges, due, strict=True) if at >= options.warmup]
    return measured, client.num_opened


async def send_on_time(
    client: Client,
    due: Sequence[float],
    order: Sequence[int],
    requests: Sequence[bytes],
    *,
    start: float | None = None,
    is_hopeless: Callable[[Exchange], bool] | None = None,
) -> list[Exchange]:
    """Submit `requests[order[i]]` at `due[i]` seconds from `start`; returns when the last is submitted, not answered.

    Args:
        start: of `time.monotonic`, which all processes of a machine share; else a moment from now.
        is_hopeless: shown every exchange as it is sent; True ends the offer before its time.
    """
    exchanges = []
    pacer = Pacer()
    try:
        start = time.monotonic() + _HEADROOM_S if start is None else start
        for number, (offset, record) in enumerate(zip(due, order, strict=True), start=1):
            await pacer.until(start + offset)
            exchange = Exchange(due=start + offset, request=requests[record], record=record)
            client.submit(exchange)
            exchanges.append(exchange)
            if is_hopeless is not None and is_hopeless(exchange):
                break
            if number % _SENDS_PER_TURN == 0:
                await asyncio.sleep(0)  # when behind, answers are read all the same
    finally:
        pacer.close()
    return exchanges


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """No garbage collection while sending: its pauses would show as send lag."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
