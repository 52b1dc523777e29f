"""Documents in CloudWatch's embedded metric format (EMF): JSON lines that CloudWatch reads out of the container's log.

Pure functions of counts and gauge readings. A metric without a value is left out, because to CloudWatch absent is not
zero. A document stays below 4,096 bytes and is written in one piece, so that lines of several processes do not mix in a
pipe.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from serve.telemetry.buckets import SECONDS_BUCKETS

Document = dict[str, Any]
Write = Callable[[str], None]

_COUNT, _MS, _BYTES, _PERCENT, _NONE = "Count", "Milliseconds", "Bytes", "Percent", "None"
_Value = float | Sequence[float]


class LatencyHistogram:
    """Counts of latencies by bucket; the last bucket has no upper bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BUCKETS) + 1)

    def observe(self, seconds: float) -> None:
        """Count one latency."""
        self.counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        """A histogram of all that both hold."""
        both = LatencyHistogram()
        both.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        return both

    def quantile_ms(self, q: float) -> float | None:
        """Milliseconds, linear within a bucket as Prometheus' `histogram_quantile`; None where it holds nothing.

        Latencies beyond the highest bound count as that bound.
        """
        total = sum(self.counts)
        if not total:
            return None
        rank, lower, below = q * total, 0.0, 0
        for bound, count in zip(SECONDS_BUCKETS, self.counts, strict=False):
            if count and below + count >= rank:
                return round(1e3 * (lower + (bound - lower) * (rank - below) / count), 3)
            lower, below = bound, below + count
        return 1e3 * lower


@dataclass(slots=True)
class Traffic:
    """The requests of one model, or of all, in one interval."""

    num_requests: int = 0
    num_errors_5xx: int = 0
    num_refused: int = 0
    num_expired: int = 0
    num_batches: int = 0
    num_batch_rows: int = 0
    answered: LatencyHistogram = field(default_factory=LatencyHistogram)
    queued: LatencyHistogram = field(default_factory=LatencyHistogram)

    def add(self, other: Traffic) -> None:
        """Count all that another one holds."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, slots=True)
class Gauges:
    """Readings of one interval, oldest first.

    Attributes:
        gpu_memory_bytes: the last reading; None without a GPU.
        gpu_utilization: from 0 to 1; empty without a GPU.
    """

    ongoing_requests: Sequence[float]
    queued_rows: Sequence[float]
    ready: float
    gpu_memory_bytes: float | None = None
    gpu_utilization: Sequence[float] = ()


def documents(
    traffic: Mapping[str, Traffic], gauges: Gauges, *, namespace: str, service: str, timestamp_ms: int
) -> Iterator[Document]:
    """One document of the replica, then one for each model with a request. `traffic` is by name of the model."""
    total = Traffic()
    for of_model in traffic.values():
        total.add(of_model)
    replica: dict[str, tuple[str, _Value | None]] = {
        "OngoingRequests": (_COUNT, gauges.ongoing_requests),
        "QueuedRows": (_COUNT, gauges.queued_rows),
        "Ready": (_NONE, gauges.ready),
        "GpuMemory": (_BYTES, gauges.gpu_memory_bytes),
        "GpuUtilization": (_PERCENT, [100 * ratio for ratio in gauges.gpu_utilization] or None),
        **_metrics(total),
    }
    yield _document(namespace, timestamp_ms, {"Service": service}, replica)
    for model in sorted(traffic):
        if traffic[model].num_requests:
            yield _document(namespace, timestamp_ms, {"Service": service, "Model": model}, _metrics(traffic[model]))


def _metrics(traffic: Traffic) -> dict[str, tuple[str, _Value | None]]:
    return {
        "Requests": (_COUNT, traffic.num_requests),
        "Errors5xx": (_COUNT, traffic.num_errors_5xx),
        "RefusedRequests": (_COUNT, traffic.num_refused),
        "ExpiredRequests": (_COUNT, traffic.num_expired),
        "RequestP50": (_MS, traffic.answered.quantile_ms(0.5)),
        "RequestP99": (_MS, traffic.answered.quantile_ms(0.99)),
        "QueueP99": (_MS, traffic.queued.quantile_ms(0.99)),
        "BatchRows": (_COUNT, traffic.num_batch_rows / traffic.num_batches if traffic.num_batches else None),
    }


def _document(
    namespace: str,
    timestamp_ms: int,
    dimensions: Mapping[str, str],
    metrics: Mapping[str, tuple[str, _Value | None]],
) -> Document:
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


def line_writer(path: Path | None) -> Write:
    """Writes whole lines to standard output, or to `path`.

    Under Ray the output of a worker is not the container's, so the launcher names its own: `/proc/PID/fd/1`, a pipe or
    a terminal. Raises OSError where the path cannot be opened.
    """
    fd = os.dup(1) if path is None else os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(text: str) -> None:
        for line in text.splitlines(keepends=True):
            rest = line.encode()
            while rest:
                rest = rest[os.write(fd, rest) :]

    return write
