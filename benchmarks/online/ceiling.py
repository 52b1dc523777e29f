"""What the generator itself can do, measured against a server in another process that does nothing.

`requests_per_s` is a closed loop: no load near this rate can be offered. `floor` is the open loop at the highest rate
of the run: its latency is what the generator and the kernel add themselves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.online.closed_loop import answers_per_s
from benchmarks.online.generator import Generator, Offer
from benchmarks.online.target import Target
from benchmarks.online.wire import native_wire
from benchmarks.percentiles import rounded, summarise

_SECONDS, _WARMUP_S = 2.0, 0.5


async def measure_ceiling(generator: Generator, offer: Offer, rows: int) -> dict[str, Any]:
    """The ceiling for one offer of requests of `rows` rows. Takes about five seconds of two cores."""
    responder = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.online.responder", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert responder.stdout is not None
        port = int(await responder.stdout.readline())
        record = {"amount": 12.5, "category": "fuel"}
        request = native_wire("fraud").request(f"127.0.0.1:{port}", [record] * rows)
        target = Target("127.0.0.1", port, [request], {}, 0.0)
        per_s = await answers_per_s(target, offer.connections, _SECONDS)
        seen = await generator.offer(target, dataclasses.replace(offer, duration_s=_SECONDS, warmup_s=_WARMUP_S))
        return {
            "requests_per_s": rounded(per_s, 0),
            "connections": offer.connections,
            "floor": {
                "rate": offer.rate,
                "latency": summarise(seen.latencies_ms),
                "send_lag": summarise(seen.lags_ms),
            },
        }
    finally:
        if responder.returncode is None:
            responder.terminate()
        await responder.wait()
