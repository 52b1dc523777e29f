"""What one-row answers say of a server and the engine in it: the numbers of `benchmarks.online.overhead`."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.online.client import Exchange
from benchmarks.online.errors import Refused
from benchmarks.online.target import Target, describe_outcome
from benchmarks.online.wire import difference, numbers
from benchmarks.percentiles import rounded


@dataclass(frozen=True)
class Answered:
    """The answers to one-row requests within `duration_s` seconds, and what they say of their batches."""

    duration_s: float
    latency_ms: list[float]
    batch_rows: list[int]
    queue_ms: list[float]
    compute_ms: list[float]

    @property
    def rows_per_s(self) -> float:
        """Rows answered per second."""
        return len(self.batch_rows) / self.duration_s

    @property
    def num_batches(self) -> float:
        """Number of batches: each of the n answers of a batch of n rows stands for a share of 1/n."""
        return sum(1 / rows for rows in self.batch_rows)

    @property
    def busy_share(self) -> float:
        """Share of the time in which a batch was on the device."""
        busy_ms = sum(ms / rows for ms, rows in zip(self.compute_ms, self.batch_rows, strict=True))
        return busy_ms / 1e3 / self.duration_s

    def draw_batches(self, seed: int, most: int) -> list[int]:
        """`most` batch sizes, each drawn as often as batches of that size were seen."""
        weights = [1 / rows for rows in self.batch_rows]
        return random.Random(seed).choices(self.batch_rows, weights, k=most)


def read_answers(target: Target, ended: Sequence[Exchange], duration_s: float) -> Answered:
    """Raises Refused where an answer is wrong or missing."""
    answered = Answered(duration_s, [], [], [], [])
    for exchange in ended:
        if exchange.status != 200:
            raise Refused(f"a one-row request was answered {describe_outcome(exchange)}")
        answer = json.loads(exchange.body)
        expected = target.alone.get(exchange.record)
        if expected is not None and not difference(numbers(answer), expected) <= target.tolerance:
            raise Refused(f"record {exchange.record} was answered otherwise than alone")
        answered.latency_ms.append(exchange.latency_ms)
        answered.batch_rows.append(answer["batch_rows"])
        answered.queue_ms.append(answer["timing_ms"]["queue"])
        answered.compute_ms.append(answer["timing_ms"]["compute"])
    return answered


def idle_round(answered: Answered, engine_ms: Sequence[float]) -> dict[str, Any]:
    """One round of lone requests and of lone calls of the engine; medians, in milliseconds."""
    server, engine = statistics.median(answered.latency_ms), statistics.median(engine_ms)
    return {"server_ms": server, "engine_ms": engine, "added_ms": server - engine}


def saturated_round(answered: Answered, engine_rows_per_s: float) -> dict[str, Any]:
    """One round at saturation.

    A second of the server is divided into three parts: the time that the engine alone takes for these batches
    (`share`), the time that the same batches take longer in the server (`slower_in_server`), and the time in which
    nothing is on the device (`between_batches`).
    """
    share = answered.rows_per_s / engine_rows_per_s
    return {
        "rows_per_s": answered.rows_per_s,
        "engine_rows_per_s": engine_rows_per_s,
        "share": share,
        "slower_in_server": answered.busy_share - share,
        "between_batches": 1 - answered.busy_share,
        "mean_batch_rows": len(answered.batch_rows) / answered.num_batches,
        "p50_ms": statistics.median(answered.latency_ms),
        "queue_p50_ms": statistics.median(answered.queue_ms),
        "compute_p50_ms": statistics.median(answered.compute_ms),
    }


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number over the rounds."""
    return {name: rounded(statistics.median(of[name] for of in rounds)) for name in rounds[0]}
