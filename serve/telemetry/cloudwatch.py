"""The `Recorder` for CloudWatch: counts events, and writes them to the log each interval (`emf.py`).

Theory of operation
-------------------
Each replica publishes for itself, under the same dimensions as all others. So CloudWatch's Average over the replicas of
`OngoingRequests` is the queue *per replica*, by which a service scales.

A gauge that is read once per interval misses every burst between two readings. So gauges are read each second (less
often where an interval has more than `_MAX_SAMPLES` seconds), and all readings are sent: EMF takes an array of values.

Percentiles are those of one replica and one interval. Over several replicas take their maximum; an average of
percentiles is not a percentile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from serve.core import Priority, ServerState
from serve.telemetry.emf import Gauges, Traffic, Write, documents
from serve.telemetry.nvml import Gpu
from serve.telemetry.recorder import ComputedBatch, ExpiryStage, QueueDepth, Recorder

SERVER_FAULTS = frozenset(
    {"deadline_exceeded", "draining", "engine_error", "internal_error", "not_ready", "too_many_connections"}
)
"""Outcomes that a caller received as a 5xx (a test compares with the API's table)."""

_log = logging.getLogger(__name__)

_MAX_SAMPLES = 30
_LAST_LINE_S = 1.0


class CloudWatchRecorder(Recorder):
    """Counts the events of one interval, by model."""

    def __init__(self) -> None:
        self._traffic: dict[str, Traffic] = {}
        self._queue: QueueDepth | None = None
        self._gpu: Gpu | None = None
        self._is_ready = False

    def watch_queue(self, queue: QueueDepth) -> None:
        self._queue = queue

    def watch_gpu(self, device: str, gpu: Gpu) -> None:  # noqa: ARG002
        self._gpu = gpu

    def state_changed(self, state: ServerState) -> None:
        self._is_ready = state is ServerState.READY

    def refused(self, model: str, reason: str) -> None:  # noqa: ARG002
        self._of(model).num_refused += 1

    def computed(self, batch: ComputedBatch) -> None:
        traffic = self._of(batch.model)
        traffic.num_batches += 1
        traffic.num_batch_rows += batch.num_rows
        for seconds in batch.queue_s:
            traffic.queued.observe(seconds)

    def expired(self, model: str, stage: ExpiryStage) -> None:  # noqa: ARG002
        self._of(model).num_expired += 1

    def answered(self, model: str, outcome: str, seconds: Sequence[float]) -> None:
        traffic = self._of(model)
        traffic.num_requests += len(seconds)
        if outcome == "ok":
            for each in seconds:
                traffic.answered.observe(each)
        elif outcome in SERVER_FAULTS:
            traffic.num_errors_5xx += len(seconds)

    def take(self) -> Mapping[str, Traffic]:
        """What was counted since the last call, by name of the model."""
        taken, self._traffic = self._traffic, {}
        return taken

    async def read_gauges(self, interval_s: float, stop: asyncio.Event) -> Gauges:
        """Read the gauges for an interval, or until `stop`; at least once."""
        ongoing: list[float] = []
        rows: list[float] = []
        utilization: list[float] = []
        end, period_s = time.monotonic() + interval_s, max(1.0, interval_s / _MAX_SAMPLES)
        while not ongoing or (time.monotonic() < end and not stop.is_set()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, min(period_s, end - time.monotonic())))
            if (queue := self._queue) is not None:
                ongoing.append(queue.num_queued_requests + queue.num_in_flight_requests)
                rows.append(sum(queue.num_queued_rows(priority) for priority in Priority))
            else:
                ongoing.append(0.0)
                rows.append(0.0)
            if self._gpu is not None:
                utilization.append(await asyncio.to_thread(self._gpu.utilization_ratio))  # a driver may take its time
        memory = math.nan if self._gpu is None else await asyncio.to_thread(self._gpu.memory_used_bytes)
        return Gauges(
            ongoing,
            rows,
            float(self._is_ready),
            None if math.isnan(memory) else memory,
            [ratio for ratio in utilization if not math.isnan(ratio)],
        )

    def _of(self, model: str) -> Traffic:
        traffic = self._traffic.get(model)
        if traffic is None:
            traffic = self._traffic[model] = Traffic()
        return traffic


async def publish(
    recorder: CloudWatchRecorder,
    write: Write,
    stop: asyncio.Event,
    *,
    namespace: str,
    service: str,
    interval_s: float,
) -> None:
    """Write the documents of every interval until `stop`, those of the last, shorter one too."""
    is_last = False
    while not is_last:
        gauges = await recorder.read_gauges(interval_s, stop)
        is_last = stop.is_set()
        now_ms = time.time_ns() // 1_000_000
        found = documents(recorder.take(), gauges, namespace=namespace, service=service, timestamp_ms=now_ms)
        text = "".join(json.dumps(document, separators=(",", ":")) + "\n" for document in found)
        await asyncio.to_thread(write, text)  # a log that does not drain must not stop the event loop


@contextlib.asynccontextmanager
async def publishing(recorder: CloudWatchRecorder | None, write: Write | None, **options: Any) -> AsyncIterator[None]:
    """Run `publish` beside the body, if there is a recorder and a log. A log that cannot be written ends no server."""
    if recorder is None or write is None:
        yield
        return
    stop = asyncio.Event()
    task = asyncio.create_task(publish(recorder, write, stop, **options))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=_LAST_LINE_S)
        if not task.done():
            task.cancel()
        elif (error := task.exception()) is not None:
            _log.error("metrics are no longer published to CloudWatch: %s", error)
