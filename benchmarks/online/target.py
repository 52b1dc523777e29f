"""A system made ready to be measured: its requests encoded, some of them answered alone, its idle latency known."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.online.client import Client
from benchmarks.online.generator import Target
from benchmarks.online.records import Record, get_request, read_records, vary
from benchmarks.online.verify import Refused
from benchmarks.online.wire import Wire, numbers

_EARLY_ASKS = 5


@dataclass(frozen=True)
class Ready:
    """What is known of an idle system.

    Attributes:
        idle_ms: median latency of one request at a time, the very first ones left out.
        distinct_answers: with 1, answers handed to the wrong caller would look right.
    """

    target: Target
    idle_ms: float
    distinct_answers: int


async def make_ready(
    url: str,
    wire: Wire,
    records: Sequence[Record],
    tolerance: float,
    *,
    num_alone: int | None = None,
    alone_s: float = 20.0,
) -> Ready:
    """Ask one-row requests one after the other, as many as `num_alone` and `alone_s` allow. Raises Refused, OSError."""
    parts = urlsplit(url)
    requests = [wire.request(parts.netloc, [record]) for record in records]
    host, port = parts.hostname or "", parts.port or 80
    client = Client(host, port, timeout_s=60.0)
    await client.open()
    answers: dict[int, list[float]] = {}
    latencies = []
    try:
        until = time.monotonic() + alone_s
        for number, request in enumerate(requests[:num_alone]):
            if number >= _EARLY_ASKS and time.monotonic() > until:
                break
            exchange = await client.ask(request)
            if exchange.status != 200:
                told = exchange.error or exchange.body.decode("utf-8", "replace")[:500]
                raise Refused(f"a record sent alone was answered {exchange.status}: {told}")
            answers[number] = numbers(json.loads(exchange.body))
            latencies.append(exchange.latency_ms)
    finally:
        await client.close()
    idle_ms = statistics.median(latencies[len(latencies) // 5 :])
    target = Target(host, port, requests, answers, tolerance)
    return Ready(target, idle_ms, len({tuple(answer) for answer in answers.values()}))


async def model_records(url: str, model: str, file: Path | None, most: int, seed: int) -> list[Record]:
    """What to post to our own native door: a file's records, else the model's example varied. Raises Refused."""
    parts = urlsplit(url)
    client = Client(parts.hostname or "", parts.port or 80)
    await client.open()
    try:
        exchange = await client.ask(get_request(parts.netloc, f"/v1/models/{model}"))
    finally:
        await client.close()
    if exchange.status != 200:
        raise Refused(f"GET /v1/models/{model}: {exchange.status} {exchange.error or exchange.body[:300]!r}")
    described = json.loads(exchange.body)
    if file is not None:
        return read_records(file, [column["name"] for column in described["inputs"]], most)
    if "example" not in described:
        raise Refused("the model tells no example; pass --records FILE.jsonl or FILE.parquet")
    return vary(described["example"], most, seed)


async def closed_loop(target: Target, connections: int, duration_s: float) -> float:
    """Answers per second with so many requests ongoing at any time: where a search may begin."""
    client = target.client(connections)
    await client.open()
    end = time.monotonic() + duration_s

    async def ask_again(first: int) -> int:
        number, count = first, 0
        while time.monotonic() < end:
            exchange = await client.ask(target.requests[number % len(target.requests)])
            count += exchange.status == 200 and time.monotonic() <= end
            number += connections
        return count

    try:
        counts = await asyncio.gather(*(ask_again(number) for number in range(connections)))
    finally:
        await client.close()
    return sum(counts) / duration_s
