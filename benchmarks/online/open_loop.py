"""The open loop itself: each request is sent when it is due, even if no earlier one is answered."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.online.client import Client, Exchange
from benchmarks.online.pacer import Pacer

HEADROOM_S = 0.05
"""From the decision to start until the first request is due."""
_SENDS_PER_TURN = 32


async def send_on_time(
    client: Client,
    due: Sequence[float],
    order: Sequence[int],
    requests: Sequence[bytes],
    *,
    start: float | None = None,
    is_hopeless: Callable[[Exchange], bool] | None = None,
) -> list[Exchange]:
    """Submit `requests[order[i]]` at `due[i]` seconds after `start`. Returns once the last request is submitted.

    Args:
        start: time of `time.monotonic`, which all processes of a machine share; by default `HEADROOM_S` from now.
        is_hopeless: called with every exchange as it is submitted; True ends the loop early.
    """
    exchanges = []
    pacer = Pacer()
    try:
        start = time.monotonic() + HEADROOM_S if start is None else start
        for number, (offset, record) in enumerate(zip(due, order, strict=True), start=1):
            await pacer.until(start + offset)
            exchange = Exchange(due=start + offset, request=requests[record], record=record)
            client.submit(exchange)
            exchanges.append(exchange)
            if is_hopeless is not None and is_hopeless(exchange):
                break
            if number % _SENDS_PER_TURN == 0:
                await asyncio.sleep(0)  # a loop that is behind schedule must still read answers
    finally:
        pacer.close()
    return exchanges


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Collect garbage now, and not again inside the block: the collector's pauses would show as send lag."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
