"""Every metric of a replica: name, unit, buckets, in one table.

Prometheus conventions: base units (seconds, rows, bytes), `_total` for counters. One `Metrics` owns one registry, so
that two servers in one process (tests) do not share numbers.
"""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.core import ModelDefinition, Priority, ServerState
from serve.telemetry.buckets import RATIO_BUCKETS, ROWS_BUCKETS, SECONDS_BUCKETS
from serve.telemetry.nvml import Gpu
from serve.telemetry.recorder import ComputedBatch, EngineFault, ExpiryStage, QueueDepth


class Metrics:
    """The table. `model` is a label only where a model is known to exist, so callers cannot invent series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tabpfn_requests",
            "Prediction requests by outcome: `ok` or the error's code.",
            ("model", "outcome"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "tabpfn_request_seconds",
            "Arrival to answer, answered requests.",
            ("model",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "tabpfn_queue_seconds",
            "Admission to start of the batch, per request.",
            ("model",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "tabpfn_batch_seconds",
            "Time of one batch on the device.",
            ("model",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "tabpfn_batch_rows",
            "Query rows in one batch.",
            ("model",),
            buckets=ROWS_BUCKETS,
            registry=self.registry,
        )
        self.batch_requests = Histogram(
            "tabpfn_batch_requests",
            "Requests in one batch.",
            ("model",),
            buckets=ROWS_BUCKETS,
            registry=self.registry,
        )
        self.batch_cost_ratio = Histogram(
            "tabpfn_batch_cost_ratio",
            "Measured over predicted time of one batch.",
            ("model",),
            buckets=RATIO_BUCKETS,
            registry=self.registry,
        )
        self.refused_requests = Counter(
            "tabpfn_refused_requests",
            "Requests refused at the door as overloaded, by reason.",
            ("model", "reason"),
            registry=self.registry,
        )
        self.expired_requests = Counter(
            "tabpfn_expired_requests",
            "Admitted requests whose deadline passed, by where they were.",
            ("model", "stage"),
            registry=self.registry,
        )
        self.bisected_batches = Counter(
            "tabpfn_bisected_batches",
            "Batches that failed and were tried again in two parts.",
            ("model",),
            registry=self.registry,
        )
        self.out_of_memory = Counter(
            "tabpfn_out_of_memory",
            "Batches for which the device had no memory.",
            ("model",),
            registry=self.registry,
        )
        self.wrong_answers = Counter(
            "tabpfn_wrong_answers",
            "Batches that the engine answered with another number of rows or outputs.",
            ("model",),
            registry=self.registry,
        )
        self.queued_requests = Gauge(
            "tabpfn_queued_requests",
            "Requests admitted and waiting for a batch.",
            registry=self.registry,
        )
        self.queued_rows = Gauge(
            "tabpfn_queued_rows", "Rows of those requests, by priority.", ("priority",), registry=self.registry
        )
        self.in_flight_requests = Gauge(
            "tabpfn_in_flight_requests",
            "Requests in the batch on the device.",
            registry=self.registry,
        )
        self.event_loop_lag_seconds = Histogram(
            "tabpfn_event_loop_lag_seconds",
            "How much later than due the event loop ran a task, sampled; added to every caller's latency.",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.gpu_memory_used_bytes = Gauge(
            "tabpfn_gpu_memory_used_bytes",
            "Memory of the GPU in use, by whomever.",
            ("device",),
            registry=self.registry,
        )
        self.gpu_utilization_ratio = Gauge(
            "tabpfn_gpu_utilization_ratio",
            "Share of the driver's last sample period in which the GPU computed, by whomever.",
            ("device",),
            registry=self.registry,
        )
        self.ready = Gauge(
            "tabpfn_ready", "1 once every model is warmed up, 0 before and while draining.", registry=self.registry
        )
        self.model_info = Gauge(
            "tabpfn_model_info",
            "1 for each model served.",
            ("model", "version", "checkpoint", "device"),
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class PrometheusRecorder(Metrics):
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

    def model_ready(self, model: ModelDefinition, device: str) -> None:
        self.model_info.labels(model.name, model.version, model.checkpoint_name, device).set(1)

    def admitted(self, model: str, num_rows: int) -> None:
        """Nothing: `tabpfn_requests_total` counts the request once it has its outcome."""

    def refused(self, model: str, reason: str) -> None:
        self.refused_requests.labels(model, reason).inc()

    def cut(self, model: str, num_rows: int, num_requests: int) -> None:
        """Nothing: the batch is observed when it was computed."""

    def computed(self, batch: ComputedBatch) -> None:
        queue_seconds = self.queue_seconds.labels(batch.model)
        for seconds in batch.queue_s:
            queue_seconds.observe(seconds)
        if batch.cost_ratio is not None:
            self.batch_cost_ratio.labels(batch.model).observe(batch.cost_ratio)
        self.batch_seconds.labels(batch.model).observe(batch.device_s)
        self.batch_rows.labels(batch.model).observe(batch.num_rows)
        self.batch_requests.labels(batch.model).observe(batch.num_requests)

    def failed(self, model: str, fault: EngineFault) -> None:
        counters = {
            EngineFault.BISECTED: self.bisected_batches,
            EngineFault.OUT_OF_MEMORY: self.out_of_memory,
            EngineFault.WRONG_ANSWER: self.wrong_answers,
        }
        counters[fault].labels(model).inc()

    def expired(self, model: str, stage: ExpiryStage) -> None:
        self.expired_requests.labels(model, stage.value).inc()

    def answered(self, model: str, outcome: str, seconds: float) -> None:
        self.requests.labels(model, outcome).inc()
        if outcome == "ok":
            self.request_seconds.labels(model).observe(seconds)

    def loop_lagged(self, seconds: float) -> None:
        self.event_loop_lag_seconds.observe(seconds)
