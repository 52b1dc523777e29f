"""Metrics for CloudWatch: lines of JSON in its embedded metric format (EMF), which it reads out of the container's log.

Theory of operation
-------------------
Nothing is counted here: `metrics.py` counts, and two snapshots of it tell what happened in between. A document is made
of two snapshots by pure functions; `publish` is the loop around them. Each replica speaks for itself alone, under the
same dimensions as all others, so CloudWatch's Average over the replicas of `OngoingRequests` is the queue *per
replica*, which is what a service scales by.

A gauge that were read once per interval would miss every burst between two readings. It is read each second instead
(more seldom where an interval has more than `_MOST_SAMPLES`), and all readings are sent: EMF takes an array of values.

Percentiles are those of one replica and one interval, from the histogram's buckets: linear within a bucket, as
Prometheus' `histogram_quantile` has it, and the highest bound for what lies beyond. Over several replicas take their
maximum; an average of percentiles is none.

A document is written in one piece and stays below 4,096 bytes, so that lines of several processes do not mix in a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serve.telemetry.prometheus import Metrics

FAULTS = frozenset({"deadline_exceeded", "draining", "engine_error", "internal_error", "not_ready"})
"""Outcomes of `tabpfn_requests_total` that a caller met as a 5xx (tests/test_emf.py compares with the API's table)."""

_log = logging.getLogger(__name__)

_MOST_SAMPLES = 30
_LAST_LINE_S = 1.0
_COUNT, _MS, _BYTES, _PERCENT, _NONE = "Count", "Milliseconds", "Bytes", "Percent", "None"

Labels = Mapping[str, str]
Document = dict[str, Any]
Value = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Interval:
    """What the counters and histograms gained between two snapshots."""

    gained: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def series(self, name: str, **wanted: str) -> Iterator[tuple[dict[str, str], float]]:
        """(labels, gain) of every series of a name whose labels hold `wanted`."""
        for (found, labels), gain in self.gained.items():
            if found == name and wanted.items() <= labels:
                yield dict(labels), gain

    def count(self, name: str, **wanted: str) -> float:
        return sum(gain for _, gain in self.series(name, **wanted))

    def mean(self, histogram: str, **wanted: str) -> float | None:
        count = self.count(f"{histogram}_count", **wanted)
        return self.count(f"{histogram}_sum", **wanted) / count if count else None

    def quantile(self, histogram: str, q: float, **wanted: str) -> float | None:
        """None where nothing was observed."""
        below: dict[float, float] = {}
        for labels, gain in self.series(f"{histogram}_bucket", **wanted):
            bound = float(labels["le"])
            below[bound] = below.get(bound, 0.0) + gain
        return _quantile(sorted(below.items()), q)


def _quantile(cumulative: Sequence[tuple[float, float]], q: float) -> float | None:
    """`cumulative`: (upper bound, observations up to it), rising, the last bound infinite."""
    total = cumulative[-1][1] if cumulative else 0.0
    if total <= 0:
        return None
    rank, lower, under = q * total, 0.0, 0.0
    for bound, count in cumulative:
        if count >= rank and count > under:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - under) / (count - under)
        lower, under = bound, count
    return lower


def snapshot(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every number that only grows, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        if family.type in ("counter", "histogram")
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def difference(
    before: Mapping[tuple[str, frozenset[tuple[str, str]]], float],
    after: Mapping[tuple[str, frozenset[tuple[str, str]]], float],
) -> Interval:
    return Interval({key: value - before.get(key, 0.0) for key, value in after.items()})


@dataclass(frozen=True, slots=True)
class Gauges:
    """Readings of one interval, oldest first."""

    ongoing_requests: Sequence[float]
    queued_rows: Sequence[float]
    ready: float
    gpu_memory_bytes: float | None = None
    """The last reading; None without a GPU."""
    gpu_utilization: Sequence[float] = ()
    """From 0 to 1; empty without a GPU."""


def documents(
    interval: Interval, gauges: Gauges, *, namespace: str, service: str, timestamp_ms: int
) -> Iterator[Document]:
    """One document of the replica, then one for each model that had a request."""
    yield _document(
        namespace,
        timestamp_ms,
        {"Service": service},
        {
            "OngoingRequests": (_COUNT, gauges.ongoing_requests),
            "QueuedRows": (_COUNT, gauges.queued_rows),
            "Ready": (_NONE, gauges.ready),
            "GpuMemory": (_BYTES, gauges.gpu_memory_bytes),
            "GpuUtilization": (_PERCENT, [100 * share for share in gauges.gpu_utilization] or None),
            "Requests": (_COUNT, interval.count("tabpfn_requests_total")),
            **_traffic(interval),
        },
    )
    for model in sorted({labels["model"] for labels, gain in interval.series("tabpfn_requests_total") if gain}):
        dimensions = {"Service": service, "Model": model}
        requests = {"Requests": (_COUNT, interval.count("tabpfn_requests_total", model=model))}
        yield _document(namespace, timestamp_ms, dimensions, {**requests, **_traffic(interval, model=model)})


def _traffic(interval: Interval, **wanted: str) -> dict[str, tuple[str, Value | None]]:
    outcomes = interval.series("tabpfn_requests_total", **wanted)
    p50, p99 = (interval.quantile("tabpfn_request_seconds", q, **wanted) for q in (0.5, 0.99))
    queue_p99 = interval.quantile("tabpfn_queue_seconds", 0.99, **wanted)
    return {
        "Errors5xx": (_COUNT, sum(gain for labels, gain in outcomes if labels["outcome"] in FAULTS)),
        "RefusedRequests": (_COUNT, interval.count("tabpfn_refused_requests_total", **wanted)),
        "ExpiredRequests": (_COUNT, interval.count("tabpfn_expired_requests_total", **wanted)),
        "RequestP50": (_MS, _ms(p50)),
        "RequestP99": (_MS, _ms(p99)),
        "QueueP99": (_MS, _ms(queue_p99)),
        "BatchRows": (_COUNT, interval.mean("tabpfn_batch_rows", **wanted)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _document(
    namespace: str,
    timestamp_ms: int,
    dimensions: Mapping[str, str],
    metrics: Mapping[str, tuple[str, Value | None]],
) -> Document:
    """A metric without a value is left out: to CloudWatch, absent is not zero."""
    known = {name: (unit, value) for name, (unit, value) in metrics.items() if value is not None}
    directive = {
        "Namespace": namespace,
        "Dimensions": [list(dimensions)],
        "Metrics": [{"Name": name, "Unit": unit} for name, (unit, _) in known.items()],
    }
    return {
        "_aws": {"Timestamp": timestamp_ms, "CloudWatchMetrics": [directive]},
        **dimensions,
        **{name: value for name, (_, value) in known.items()},
    }


Write = Callable[[str], None]


async def publish(
    metrics: Metrics,
    write: Write,
    stop: asyncio.Event,
    *,
    namespace: str,
    service: str,
    interval_s: float,
) -> None:
    """Write the documents of every interval, the last, shorter one's too, until `stop`."""
    before, last = snapshot(metrics.registry), False
    while not last:
        gauges = await _read_for(interval_s, metrics, stop)
        after, last = snapshot(metrics.registry), stop.is_set()
        now_ms = time.time_ns() // 1_000_000
        interval = difference(before, after)
        found = documents(interval, gauges, namespace=namespace, service=service, timestamp_ms=now_ms)
        text = "".join(json.dumps(document, separators=(",", ":")) + "\n" for document in found)
        before = after
        await asyncio.to_thread(write, text)  # a log that does not drain must not stop the callers


async def _read_for(interval_s: float, metrics: Metrics, stop: asyncio.Event) -> Gauges:
    """Read the gauges for an interval, or until `stop`."""
    ongoing: list[float] = []
    rows: list[float] = []
    utilization: list[float] = []
    end, period_s = time.monotonic() + interval_s, max(1.0, interval_s / _MOST_SAMPLES)
    while not ongoing or (time.monotonic() < end and not stop.is_set()):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, min(period_s, end - time.monotonic())))
        ongoing.append(_now(metrics.queued_requests) + _now(metrics.in_flight_requests))
        rows.append(_now(metrics.queued_rows))
        utilization += await asyncio.to_thread(_known, metrics.gpu_utilization_ratio)  # a driver may take its time
    memory = await asyncio.to_thread(_known, metrics.gpu_memory_used_bytes)
    return Gauges(ongoing, rows, _now(metrics.ready), sum(memory) if memory else None, utilization)


def _now(gauge: Any) -> float:
    """The sum over a gauge's labels."""
    return sum(_known(gauge), 0.0)


def _known(gauge: Any) -> list[float]:
    """What a gauge says, label by label; nothing where it does not know."""
    values = [float(sample.value) for family in gauge.collect() for sample in family.samples]
    return [value for value in values if not math.isnan(value)]


@contextlib.asynccontextmanager
async def publishing(metrics: Metrics, write: Write | None, **how: Any) -> AsyncIterator[None]:
    """`publish` beside the body; `write` None publishes nothing. A log that cannot be written ends no server."""
    if write is None:
        yield
        return
    stop = asyncio.Event()
    task = asyncio.create_task(publish(metrics, write, stop, **how))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=_LAST_LINE_S)
        if not task.done():
            task.cancel()
        elif (error := task.exception()) is not None:
            _log.error("metrics are no longer published: %s", error)


def line_writer(path: Path | None) -> Write:
    """Writes whole lines to standard output, or to `path`: under Ray, whose workers' output is not the container's, the
    launcher names its own (`/proc/PID/fd/1`, a pipe or a terminal). Raises OSError where it cannot be opened."""
    fd = os.dup(1) if path is None else os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(text: str) -> None:
        for line in text.splitlines(keepends=True):
            left = line.encode()
            while left:
                left = left[os.write(fd, left) :]

    return write
