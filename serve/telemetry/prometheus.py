"""Every metric of a replica in one table, and the `Recorder` that fills it.

Prometheus conventions: base units (seconds, rows, bytes), `_total` for counters. One `Metrics` owns one registry, so
that two servers in one process (tests) do not share numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serve.core import ModelDefinition, Priority, ServerState
from serve.telemetry.buckets import RATIO_BUCKETS, ROWS_BUCKETS, SECONDS_BUCKETS
from serve.telemetry.nvml import Gpu
from serve.telemetry.recorder import ComputedBatch, EngineFault, ExpiryStage, QueueDepth, Recorder


class _Series:
    """The values of one set of labels: how many in each bucket, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self, num_buckets: int) -> None:
        self.counts = [0] * num_buckets
        self.sum = 0.0


class Histogram(Collector):
    """One histogram of one registry. It takes the values of many requests at once, with one lookup of the series.

    Args:
        buckets: upper bounds, rising, without infinity.
        labels: names of the labels.
    """

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self.name, self.label_names = name, tuple(labels)
        self._meaning = meaning
        self._bounds = tuple(buckets)
        self._names = [*map(floatToGoString, self._bounds), "+Inf"]
        self._series: dict[tuple[str, ...], _Series] = {}
        if not labels:
            self._series[()] = _Series(len(self._names))
        registry.register(self)

    def observe(self, values: Iterable[float], *labels: str) -> None:
        """Count values under these values of the labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(len(self._names))
        counts, bounds = series.counts, self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            series.sum += value

    def collect(self) -> list[HistogramMetricFamily]:
        """What Prometheus reads."""
        family = HistogramMetricFamily(self.name, self._meaning, labels=self.label_names)
        for labels, series in self._series.items():
            buckets = zip(self._names, map(float, accumulate(series.counts)), strict=True)
            family.add_metric(labels, list(buckets), series.sum)
        return [family]


class Metrics:
    """The table of metrics. `model` names a served model or is `unknown`, so callers cannot invent series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._add_request_metrics()
        self._add_batch_metrics()
        self._add_replica_metrics()

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"tabpfn_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"tabpfn_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"tabpfn_{name}", meaning, labels, buckets, self.registry)

    def _add_request_metrics(self) -> None:
        self.requests = self._counter(
            "requests", "Prediction requests by outcome: `ok` or the code of the error.", "model", "outcome"
        )
        self.request_seconds = self._histogram(
            "request_seconds", "Arrival to answer, of answered requests.", SECONDS_BUCKETS, "model"
        )
        self.queue_seconds = self._histogram(
            "queue_seconds", "Admission to the start of the batch, per request.", SECONDS_BUCKETS, "model"
        )
        self.refused_requests = self._counter(
            "refused_requests", "Requests refused as too late or over a limit, by reason.", "model", "reason"
        )
        self.expired_requests = self._counter(
            "expired_requests", "Admitted requests whose deadline passed, by stage.", "model", "stage"
        )
        self.queued_requests = self._gauge("queued_requests", "Admitted requests that wait for a batch.")
        self.queued_rows = self._gauge("queued_rows", "Rows of those requests, by priority.", "priority")
        self.in_flight_requests = self._gauge("in_flight_requests", "Requests in the batches in flight.")

    def _add_batch_metrics(self) -> None:
        self.batch_seconds = self._histogram(
            "batch_seconds", "Time of one batch on the device.", SECONDS_BUCKETS, "model"
        )
        self.batch_rows = self._histogram("batch_rows", "Query rows of one batch.", ROWS_BUCKETS, "model")
        self.batch_requests = self._histogram("batch_requests", "Requests of one batch.", ROWS_BUCKETS, "model")
        self.batch_cost_ratio = self._histogram(
            "batch_cost_ratio", "Measured over predicted time of one batch.", RATIO_BUCKETS, "model"
        )
        self.bisected_batches = self._counter(
            "bisected_batches", "Batches that failed and were tried again in two parts.", "model"
        )
        self.out_of_memory = self._counter("out_of_memory", "Batches for which the device had no memory.", "model")
        self.wrong_answers = self._counter(
            "wrong_answers", "Batches that the engine answered with another number of rows or outputs.", "model"
        )
        self.non_finite_answers = self._counter(
            "non_finite_answers", "Batches with NaN or infinity among the engine's answers.", "model"
        )

    def _add_replica_metrics(self) -> None:
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds",
            "How much later than due the event loop ran a task, sampled. It adds to the latency of every request.",
            SECONDS_BUCKETS,
        )
        self.connections = self._gauge("connections", "Open connections of callers, idle ones included.")
        self.ended_connections = self._counter(
            "ended_connections", "Connections that the server ended because of their caller, by reason.", "reason"
        )
        self.gpu_memory_used_bytes = self._gauge(
            "gpu_memory_used_bytes", "Memory of the GPU in use, by all processes.", "device"
        )
        self.gpu_utilization_ratio = self._gauge(
            "gpu_utilization_ratio",
            "Share of the driver's last sample period in which the GPU computed, by all processes.",
            "device",
        )
        self.ready = self._gauge(
            "ready", "1 once every model is warmed up; 0 before, and from the lame duck or drain on."
        )
        self.model_info = self._gauge(
            "model_info", "1 for each served model.", "model", "version", "checkpoint", "device", "backend"
        )

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class PrometheusRecorder(Metrics, Recorder):
    """The `Recorder` behind `/metrics`."""

    def watch_queue(self, queue: QueueDepth) -> None:
        self.queued_requests.set_function(lambda: queue.num_queued_requests)
        self.in_flight_requests.set_function(lambda: queue.num_in_flight_requests)
        for priority in Priority:
            self.queued_rows.labels(priority.value).set_function(partial(queue.num_queued_rows, priority))

    def watch_gpu(self, device: str, gpu: Gpu) -> None:
        self.gpu_memory_used_bytes.labels(device).set_function(gpu.memory_used_bytes)
        self.gpu_utilization_ratio.labels(device).set_function(gpu.utilization_ratio)

    def state_changed(self, state: ServerState) -> None:
        self.ready.set(state is ServerState.READY)

    def model_ready(self, model: ModelDefinition, device: str, backend: str) -> None:
        self.model_info.labels(model.name, model.version, model.checkpoint_name, device, backend).set(1)

    def refused(self, model: str, reason: str) -> None:
        self.refused_requests.labels(model, reason).inc()

    def computed(self, batch: ComputedBatch) -> None:
        self.queue_seconds.observe(batch.queue_s, batch.model)
        if batch.cost_ratio is not None:
            self.batch_cost_ratio.observe([batch.cost_ratio], batch.model)
        self.batch_seconds.observe([batch.device_s], batch.model)
        self.batch_rows.observe([batch.num_rows], batch.model)
        self.batch_requests.observe([batch.num_requests], batch.model)

    def failed(self, model: str, fault: EngineFault) -> None:
        counters = {
            EngineFault.BISECTED: self.bisected_batches,
            EngineFault.OUT_OF_MEMORY: self.out_of_memory,
            EngineFault.WRONG_ANSWER: self.wrong_answers,
            EngineFault.NON_FINITE_ANSWER: self.non_finite_answers,
        }
        counters[fault].labels(model).inc()

    def expired(self, model: str, stage: ExpiryStage) -> None:
        self.expired_requests.labels(model, stage.value).inc()

    def answered(self, model: str, outcome: str, seconds: Sequence[float]) -> None:
        self.requests.labels(model, outcome).inc(len(seconds))
        if outcome == "ok":
            self.request_seconds.observe(seconds, model)

    def watch_connections(self, count: Callable[[], int]) -> None:
        self.connections.set_function(count)

    def connection_ended(self, reason: str) -> None:
        self.ended_connections.labels(reason).inc()

    def loop_lagged(self, seconds: float) -> None:
        self.event_loop_lag_seconds.observe([seconds])
