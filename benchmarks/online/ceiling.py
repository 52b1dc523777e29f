"""What the generator itself can do: against a server that does nothing, in a process of its own.

`requests_per_s` is closed loop, one request after the other on each connection: no load near it can be offered.
`floor` is the open loop at the highest rate of the run: the latency that the generator and the kernel add themselves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.online.client import Client
from benchmarks.online.offer import no_collector, offer_rate
from benchmarks.online.options import LoadOptions
from benchmarks.online.wire import predict_request
from benchmarks.percentiles import rounded, summarise

_SECONDS = 2.0


async def measure_ceiling(options: LoadOptions) -> dict[str, Any]:
    """About five seconds of both cores."""
    responder = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.online.responder", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert responder.stdout is not None
        port = int(await responder.stdout.readline())
        local = dataclasses.replace(
            options, url=f"http://127.0.0.1:{port}", duration=_SECONDS, warmup=0.5, rate=(max(options.rate),)
        )
        request = predict_request(local.host, local.model, [{"amount": 12.5, "category": "fuel"}] * local.rows)
        return {
            "requests_per_s": await _closed_loop(local, request),
            "connections": local.connections,
            "floor": await _floor(local, request),
        }
    finally:
        if responder.returncode is None:
            responder.terminate()
        await responder.wait()


async def _closed_loop(options: LoadOptions, request: bytes) -> float | None:
    client = options.client(options.connections)
    await client.open()
    try:
        with no_collector():  # it collects first, which takes a while: only then does the clock start
            end = time.monotonic() + _SECONDS
            counts = await asyncio.gather(*(_repeat(client, request, end) for _ in range(options.connections)))
    finally:
        await client.close()
    return rounded(sum(counts) / _SECONDS, 0)


async def _repeat(client: Client, request: bytes, end: float) -> int:
    count = 0
    while time.monotonic() < end:
        count += (await client.ask(request)).status == 200
    return count


async def _floor(options: LoadOptions, request: bytes) -> dict[str, Any]:
    rate = options.rate[0]
    exchanges, _ = await offer_rate(options, rate, [request])
    ok = [exchange.latency_ms for exchange in exchanges if exchange.status == 200]
    lag = [exchange.send_lag_ms for exchange in exchanges if exchange.is_sent]
    return {"rate": rate, "latency": summarise(ok), "send_lag": summarise(lag)}
