"""The classes of the settings: frozen, one class per group; an unknown key is an error.

A description says how to choose the value. Help, docs/settings.md and error messages are made of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo

from serve.core import DEVICE_PATTERN
from serve.settings.api_group import ApiSettings
from serve.settings.group import Group
from serve.settings.model_source import ModelSource
from serve.settings.number_formats import Precision, tolerance_of

_MOST_ONGOING_REQUESTS = 4_096


def _check_device(value: str) -> str:
    if not re.fullmatch(DEVICE_PATTERN, value):
        raise ValueError(f"{value!r} is no device; write `cpu`, or one GPU by its number, such as `cuda:0`")
    return value


def _check_http_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+/?", value):
        raise ValueError(f"{value!r} is no address of a server; write it as `https://HOST` or `http://HOST:PORT`")
    return value


def _read_json(value: Any) -> Any:
    """The list of models as an environment variable holds it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"the text is not JSON: {error}") from None


Device = Annotated[str, AfterValidator(_check_device)]
HttpAddress = Annotated[str, AfterValidator(_check_http_address)]
# A path means what it means in the folder in which the settings are read: a replica under Ray works in another one.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
Models = Annotated[
    tuple[Annotated[ModelSource, AfterValidator(ModelSource.with_absolute_path)], ...], BeforeValidator(_read_json)
]


class EngineSettings(Group):
    """The device, and how it computes. Used by `serve/engine/`."""

    device: Device = Field(
        "cpu",
        description="Where models run: `cpu`, or one GPU by its number, such as `cuda:0`. The server never chooses: a "
        "KV cache fits only the kind of device that built it.",
    )
    worker_process: bool = Field(
        True,
        description="Run the engine in a process of its own, so that reading requests and computing answers run at "
        "the same time. Turn it off on a machine with one core, or to profile everything in one process. "
        "Models made from pickles need it on.",
    )
    num_threads: int = Field(
        1,
        ge=1,
        description="Number of CPU threads that torch computes with. 1 is steady beside other work: on busy cores, "
        "several threads that wait for each other can be a hundred times slower. Raise it for full-size checkpoints "
        "on cores that nothing else uses.",
    )
    backend: Literal["compiled", "tabpfn"] = Field(
        "compiled",
        description="`compiled` answers with this server's compiled forward passes, which are checked against tabpfn "
        "at every load; tabpfn answers for an architecture that has none. `tabpfn` always answers with tabpfn's own "
        "prediction.",
    )
    inference_precision: Precision | None = Field(
        None,
        description="Number format of the computation. Empty is `float32` on a CPU and `auto` on a GPU. `float32` "
        "gives the same answers on every CPU. `bfloat16` and `float16` read half as many bytes of weights and KV "
        "cache, and change answers by about 1e-2 and 1e-3. `auto` takes bfloat16 where the device multiplies it; on a "
        "CPU only for large checkpoints, and the demo's is small. Elsewhere `auto` takes float16 on a GPU, such as a "
        "T4, and float32 on a CPU. With `backend: tabpfn`, tabpfn interprets `auto`.",
    )
    kv_cache_precision: Precision = Field(
        "auto",
        description="Number format of the cached keys and values, and of the attention to them, with `backend: "
        "compiled`. `auto` takes the `inference_precision`. Where both are `auto`, it takes what the device "
        "multiplies, for small checkpoints too: 100 rows of the demo model then take a fifth less time, and answers "
        "change by 1e-4.",
    )
    kv_cache_dir: AbsolutePath | None = Field(
        None,
        description="Folder that keeps KV caches between starts, so that a full-size model starts in seconds instead "
        "of minutes. It holds one file per model, version and kind of device. A damaged file, or one of another fit, "
        "is built again. A folder that cannot be written is named in the log, and the model serves without a file. The "
        "files hold values of the context: protect them like the data. Empty keeps none.",
    )
    parity_tolerance: float | None = Field(
        None,
        gt=0,
        description="Largest allowed difference between three answers to the same canary rows: one row at a time, in a "
        "batch, and by tabpfn. They are compared at every start, and a larger difference ends it. Empty follows the "
        "number formats above: 1e-5 for `float32`, 5e-3 for `float16`, 2e-2 for `bfloat16` and `auto`; the largest of "
        "them counts. In float32 a larger difference is a fault to report, not to tolerate.",
    )

    @property
    def chosen_precision(self) -> Precision:
        """`inference_precision`, or the one that applies to the device where it is empty."""
        return self.inference_precision or ("float32" if self.device == "cpu" else "auto")

    @property
    def allowed_difference(self) -> float:
        """`parity_tolerance`, or the one of the least exact number format where it is empty."""
        if self.parity_tolerance is not None:
            return self.parity_tolerance
        follows = self.backend == "tabpfn" or self.kv_cache_precision == "auto"
        return tolerance_of(self.chosen_precision, self.chosen_precision if follows else self.kv_cache_precision)


class BatchingSettings(Group):
    """Limits of batches and of the queue. Used by `serve/batching/`."""

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
        description="Most query rows in one request; a larger one is refused with 413. Keep it as small as your "
        "callers allow: a large request takes memory and reading time that the others wait for.",
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        description="Longest time, from its arrival, that a request waits for others to share its batch while the "
        "device is idle. 0 suits nearly every load: requests that arrive while the device is busy still form a batch.",
    )
    default_timeout_ms: float = Field(
        30_000.0,
        gt=0,
        description="Time from arrival to deadline of a request without the header `x-request-timeout-ms`. A manifest "
        "may set another for its model. A model whose full batch takes more than a quarter of it gets the time of "
        "four full batches. It also limits the queue. Keep it below the timeouts of your callers and proxies, and at "
        "most `drain_timeout_s`, so that a shutdown answers every admitted request.",
    )
    max_ongoing_requests: int | None = Field(
        None,
        ge=1,
        description="Most admitted requests, queued and in flight together; the next one is refused with 429 at once. "
        "Empty admits the requests that can be answered in time at the measured cost, and at most 4,096, because each "
        "holds a socket.",
    )
    max_ongoing_rows: int | None = Field(
        None,
        ge=1,
        description="Most query rows in the admitted requests. Empty admits the rows that can be answered within the "
        "default timeout at the measured cost. Set it only where memory is short.",
    )
    max_bulk_batch_ms: float | None = Field(
        None,
        gt=0,
        description="Longest predicted time of a batch with bulk rows, so the most that bulk requests add to the wait "
        "of an interactive one. One row is always allowed. Empty takes four times the measured time of one row. Raise "
        "it for more bulk throughput; lower it for steadier interactive latency.",
    )
    max_bulk_wait_ms: float = Field(
        1_000.0,
        ge=0,
        description="Longest time that the bulk rows of a model wait under interactive load. After it they get the "
        "next turn, but never delay the same interactive request twice. Lower it where bulk requests must progress "
        "although interactive load fills the device.",
    )
    hung_batch_factor: float = Field(
        20.0,
        gt=1,
        description="A batch counts as hung after this multiple of its expected time, and never before 10 s. Until it "
        "returns the replica is not ready and its health check fails, so that Ray replaces the replica.",
    )

    @property
    def ongoing_requests_limit(self) -> int:
        """`max_ongoing_requests`, or the limit that applies where it is empty."""
        return _MOST_ONGOING_REQUESTS if self.max_ongoing_requests is None else self.max_ongoing_requests


class StoreSettings(Group):
    """Where models come from. Used by `serve/store/`."""

    model_repository: AbsolutePath | None = Field(
        None,
        description="Folder of models, `NAME/VERSION/manifest.json`. Empty serves `models`, or the demo model inside "
        "the package where that is empty too.",
    )
    models: Models = Field(
        (),
        description="Single models, instead of `model_repository`: a list of `name`, `uri` and `sha256`. A `uri` is a "
        "model folder or a pickle, on this machine or in S3; a pickle needs its `sha256` (docs/models.md, Models from "
        "S3).",
    )
    download_dir: AbsolutePath | None = Field(
        None,
        description="Folder that keeps downloaded and imported `models`, so that a restart downloads nothing. Empty is "
        "`tabpfn-serve` in `XDG_CACHE_HOME` or in `~/.cache`. The files hold contexts: protect them like the data. "
        "The server deletes none of them; you may.",
    )
    s3_endpoint_url: HttpAddress | None = Field(
        None,
        description="Address of an S3-compatible server, such as `http://127.0.0.1:9000`. Empty is the address in "
        "`AWS_ENDPOINT_URL_S3`, or AWS. Region and credentials are found as by every AWS tool.",
    )
    allow_non_commercial: bool = Field(
        False,
        description="Serve checkpoints whose licence forbids commercial use (TabPFN 2.5 and newer). Set it only where "
        "you use them for research or evaluation.",
    )

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if self.models and self.model_repository is not None:
            raise ValueError("store.models and store.model_repository are both set; take one of them away")
        names = [source.name for source in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"store.models names {', '.join(twice)} more than once; give each model its own name")
        return self


class MetricsSettings(Group):
    """Metrics in CloudWatch. Used by `serve/telemetry/`; `/metrics` for Prometheus needs no setting."""

    emf_namespace: str | None = Field(
        None,
        min_length=1,
        description="CloudWatch namespace. Set it to write metrics to the log in CloudWatch's embedded metric format "
        "(EMF), which needs no agent. Empty writes none.",
    )
    emf_service: str = Field(
        "tabpfn-serve",
        min_length=1,
        description="Value of the dimension `Service` of these metrics. Take the name of the service in its cluster.",
    )
    emf_interval_s: float = Field(
        15.0,
        gt=0,
        description="Seconds between two records of metrics. A shorter interval lets autoscaling react sooner and "
        "writes more log.",
    )
    emf_path: AbsolutePath | None = Field(
        None,
        description="File or pipe to which the metrics are appended. Empty is standard output; under Ray, that of the "
        "launcher.",
    )


class ServerSettings(Group):
    """Every setting of one replica; also the `args` in `serve_config.yaml`."""

    engine: EngineSettings = Field(default_factory=EngineSettings, description="The device, and how it computes.")
    batching: BatchingSettings = Field(
        default_factory=BatchingSettings, description="Limits of batches and of the queue."
    )
    api: ApiSettings = Field(default_factory=ApiSettings, description="HTTP limits and shutdown.")
    store: StoreSettings = Field(default_factory=StoreSettings, description="Where models come from.")
    metrics: MetricsSettings = Field(
        default_factory=MetricsSettings,
        description="Metrics in CloudWatch. `/metrics` for Prometheus needs no setting.",
    )

    @property
    def num_fronts(self) -> int:
        """`api.num_fronts`, or what `auto` stands for on this machine."""
        if self.api.num_fronts != "auto":
            return self.api.num_fronts
        return max(1, len(os.sched_getaffinity(0)) - 2) if self.engine.device.startswith("cuda") else 1


def every_setting() -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield (group, name, field) of each setting."""
    for group, field in ServerSettings.model_fields.items():
        assert field.annotation is not None
        for name, setting in field.annotation.model_fields.items():
            yield group, name, setting
