"""Every setting: frozen, one class per owner, unknown keys are errors. Each description says how to choose the value.

The environment and files are read by the command line and the Ray edge only; below them settings are arguments.
`docs/settings.md` is written from these descriptions (`tests/test_docs.py` compares).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from serve.core import DEVICE_PATTERN
from serve.settings.model_source import ModelSource

_MOST_ONGOING_REQUESTS = 4_096


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSettings(_Settings):
    """Owner: `engine/`."""

    device: str = Field(
        "cpu",
        pattern=DEVICE_PATTERN,
        description="Where models run: `cpu` or one named GPU, `cuda:0`. Never guessed: a fitted context belongs to "
        "the kind of device that built it.",
    )
    worker_process: bool = Field(
        True,
        description="Run the engine in a process of its own, so that reading requests and computing answers do not "
        "wait for each other. Without it a single process does both: for one core, or to look into it with a profiler.",
    )
    num_threads: int = Field(
        1,
        ge=1,
        description="Threads of torch on the CPU. 1 is steady beside other work; threads that wait for each other on "
        "busy cores can be a hundred times slower. Raise it for full-size checkpoints on cores of their own.",
    )
    backend: str = Field(
        "compiled",
        pattern="^(compiled|tabpfn)$",
        description="`compiled` answers with this server's compiled forward passes, checked against tabpfn at every "
        "load. An architecture without one is answered by tabpfn. `tabpfn` answers with tabpfn's own prediction.",
    )
    inference_precision: str = Field(
        "float32",
        pattern="^(float32|bfloat16|float16|auto)$",
        description="`float32` answers the same on every CPU. `bfloat16` and `float16` halve what is read of weights "
        "and KV cache, and move answers by about 1e-2 and 1e-3. `auto` is bfloat16 where the device multiplies it "
        "(on a CPU for large checkpoints only, the demo's is not), else float16 on a GPU and float32 on a CPU; with "
        "`backend: library`, tabpfn's own choice.",
    )
    kv_cache_precision: str = Field(
        "auto",
        pattern="^(float32|bfloat16|float16|auto)$",
        description="Number format of the cached keys and values, and of attention to them, in our forward passes. "
        "`auto` follows a named `inference_precision`; where that is `auto` too, it is what the device multiplies, for "
        "small checkpoints as well: 100 rows of the demo model take a fifth less time, and answers move by 1e-4.",
    )
    kv_cache_dir: Path | None = Field(
        None,
        description="Folder that keeps built KV caches between starts, one file per model, version and kind of device: "
        "a full-size model then starts in seconds, not minutes. A file of another fit, or a damaged one, is rebuilt. "
        "Such a file holds values of the context: guard it like the data.",
    )
    parity_tolerance: float = Field(
        1e-5,
        gt=0,
        description="Largest difference in the start-up check between a canary row alone, batched and as the library "
        "answers it. Beyond it the start fails. About 2e-2 suits half precision.",
    )


class BatchingSettings(_Settings):
    """Owner: `batching/`."""

    max_batch_rows: int = Field(
        256,
        ge=1,
        le=32_768,
        description="Most query rows in one forward pass; larger requests are split. Raise it until a full batch takes "
        "about half of your latency target.",
    )
    max_request_rows: int = Field(
        10_000,
        ge=1,
        description="Most query rows in one request; more are refused with 413. A request is read and its answer "
        "written in one piece on the thread that serves everyone, so keep it as small as your callers can bear.",
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        description="Most a request may wait for company while the device is idle, counted from its arrival. 0 never "
        "waits and still batches whatever queued while the device was busy, which suits nearly every load.",
    )
    default_timeout_ms: float = Field(
        30_000.0,
        gt=0,
        description="The deadline of a request without `x-request-timeout-ms`, from its arrival; a manifest may give "
        "its model another. A model whose full batch was measured to take more than a quarter of it gets four full "
        "batches instead. It also bounds the queue: keep it below the time after which your callers or proxies give "
        "up, and no longer than `drain_timeout_s`, so that a shutdown can answer all that was admitted.",
    )
    max_ongoing_requests: int | None = Field(
        None,
        ge=1,
        description="Admitted requests, queued and in flight together; one more is refused with 429 at once. Empty "
        "admits whom the measured cost says can be answered in time, 4,096 at most since each holds a socket.",
    )
    max_ongoing_rows: int | None = Field(
        None,
        ge=1,
        description="Rows of those requests. Empty admits as many as the measured cost says can be answered within the "
        "default timeout; set it only where memory is short.",
    )
    max_bulk_batch_ms: float | None = Field(
        None,
        gt=0,
        description="Most a batch with bulk rows is predicted to take, and so the most that bulk adds to an "
        "interactive request's wait (one row always fits). Empty takes four times the measured time of one row. Raise "
        "it for more bulk throughput, lower it for steadier interactive latency.",
    )
    max_bulk_wait_ms: float = Field(
        1_000.0,
        ge=0,
        description="Bulk rows of a model that were not served for so long have the next turn that does not delay an "
        "interactive request twice. Lower it where bulk must get on although interactive load fills the device.",
    )
    hung_batch_factor: float = Field(
        20.0,
        gt=1,
        description="A batch that takes so many times its expected time, and more than 10 s, is taken for hung: the "
        "replica is not ready until it comes back, and its health check fails, so that Ray replaces it.",
    )

    @property
    def ongoing_requests_limit(self) -> int:
        """`max_ongoing_requests`, or what stands in its place."""
        return _MOST_ONGOING_REQUESTS if self.max_ongoing_requests is None else self.max_ongoing_requests


class ApiSettings(_Settings):
    """Owner: `api/`."""

    max_body_bytes: int = Field(
        8 * 2**20,
        ge=1_024,
        description="Largest request body; a larger one is refused with 413 before it is read whole.",
    )
    drain_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Most that a shutdown waits for admitted requests. Keep it below the orchestrator's kill timeout.",
    )
    lame_duck_s: float = Field(
        0.0,
        ge=0,
        description="How long a stopping server still serves every request while `/v2/health/ready` already answers "
        "503. Set it where the load balancer learns of a stop only from that check: a little more than its interval "
        "times its failure threshold. 0 stops at once.",
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        description="How long an idle connection is kept. Longer than the load balancer in front keeps its own, or it "
        "sends a request into a connection that is just being closed (502).",
    )


class StoreSettings(_Settings):
    """Owner: `store/`."""

    model_repository: Path | None = Field(
        None,
        description="Folder of models, `NAME/VERSION/manifest.json`. Empty serves those of `models`, or, where that is "
        "empty too, the demo model inside the package.",
    )
    models: tuple[ModelSource, ...] = Field(
        (),
        description="Models one by one, instead of `model_repository`: a list of `name`, `uri` and `sha256` for "
        "folders on this machine or in S3, and for pickles of pinned digest (docs/models.md, Models from S3).",
    )
    download_dir: Path | None = Field(
        None,
        description="Folder that keeps what `models` had downloaded or imported, so that a restart downloads nothing. "
        "Empty is `tabpfn-serve` in `XDG_CACHE_HOME` or `~/.cache`. It holds contexts: guard it like the data. "
        "Nothing in it is ever deleted by the server; you may.",
    )
    s3_endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+/?$",
        description="Address of an S3-compatible server, such as `http://127.0.0.1:9000`. Empty is AWS, or what "
        "`AWS_ENDPOINT_URL_S3` says. Region and credentials are found as by every AWS tool.",
    )
    allow_non_commercial: bool = Field(
        False,
        description="Serve checkpoints whose licence forbids commercial use (TabPFN 2.5 and newer). Set it only where "
        "the use is research or evaluation.",
    )

    @model_validator(mode="after")
    def _names_one_origin(self) -> Self:
        if self.models and self.model_repository is not None:
            raise ValueError("store.models and store.model_repository are both set; models come from one of them")
        names = [source.name for source in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"store.models names {', '.join(twice)} more than once")
        return self


class MetricsSettings(_Settings):
    """Owner: `emf.py`. Prometheus reads `/metrics` whatever is said here."""

    emf_namespace: str | None = Field(
        None,
        min_length=1,
        description="CloudWatch namespace: where it is set, metrics are written to the log in CloudWatch's embedded "
        "metric format, which needs no agent. Empty writes none.",
    )
    emf_service: str = Field(
        "tabpfn-serve",
        min_length=1,
        description="The dimension `Service` of those metrics. Name it as the service is named where it runs.",
    )
    emf_interval_s: float = Field(
        15.0,
        gt=0,
        description="Seconds between two documents. Shorter lets scaling react sooner, and fills the log.",
    )
    emf_path: Path | None = Field(
        None,
        description="File or pipe that they are appended to. Empty is standard output; under Ray, the launcher's.",
    )


class ServerSettings(_Settings):
    """Everything one replica is told; also the `args` of `serve_config.yaml`."""

    engine: EngineSettings = Field(default_factory=EngineSettings, description="The device and how it computes.")
    batching: BatchingSettings = Field(default_factory=BatchingSettings, description="Batch and queue limits.")
    api: ApiSettings = Field(default_factory=ApiSettings, description="HTTP limits and shutdown.")
    store: StoreSettings = Field(default_factory=StoreSettings, description="Where models come from.")
    metrics: MetricsSettings = Field(default_factory=MetricsSettings, description="Metrics beside `/metrics`.")


def every_setting() -> Iterator[tuple[str, str, FieldInfo]]:
    """(owner, name, field) of each."""
    for owner, group in ServerSettings.model_fields.items():
        assert group.annotation is not None
        for name, field in group.annotation.model_fields.items():
            yield owner, name, field
