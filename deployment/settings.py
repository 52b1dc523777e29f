"""The options of a stage file. They are frozen, unknown keys are errors, and contradictions are refused on reading.

Some settings of the server stand here too (drain, deadline, keep-alive), because the time limits of load balancer and
container depend on them. They reach the container as variables `TABPFN_SERVE_<GROUP>_<NAME>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployment.instances import instance_types

STAGES = Path(__file__).parent / "stages"

METRIC_NAMESPACE = "TabPFNServe"
"""The CloudWatch namespace of the metrics that the server reports itself."""

GRACE_S = 1
"""Seconds for which the server serves what is inside after it closed its port. A constant of the server."""

STOP_MARGIN_S = 20
"""Seconds that a container needs beyond its drain: last answers to slow readers, then Ray (docs/operations.md)."""

MAX_FARGATE_STOP_S = 120
"""The longest stop timeout that Fargate allows."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSettings(_Settings):
    """The VPC of a stage, and the way from its private subnets to AWS's services."""

    cidr: str = Field("10.40.0.0/16", pattern=r"^10\.\d{1,3}\.0\.0/16$")
    nat_gateways: int = Field(1, ge=0, le=2)
    endpoints: bool = Field(
        False, description="Interface endpoints for the AWS services that tasks call. They are billed by the hour."
    )

    @model_validator(mode="after")
    def _has_a_way_out(self) -> Self:
        if not self.endpoints and not self.nat_gateways:
            raise ValueError(
                "tasks cannot reach ECR and CloudWatch: set nat_gateways to 1 or 2 (NAT gateway), or endpoints to true"
            )
        return self


class RegistrySettings(_Settings):
    """How long images and replaced models are kept."""

    kept_images: int = Field(20, ge=2, description="Images that a repository keeps. The oldest are deleted first.")
    noncurrent_days: int = Field(90, ge=1, description="Days that a replaced object of the models bucket is kept.")


class ModelSettings(_Settings):
    """One model in the models bucket."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    key: str = Field(min_length=1, description="Folder or object in the models bucket, such as `fraud/1`.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ServerSettings(_Settings):
    """The settings of the server, the same in the containers of both services."""

    models: tuple[ModelSettings, ...] = Field((), description="Empty serves the demo model of the image.")
    default_timeout_ms: int = Field(30_000, gt=0, description="The deadline of a request that names none.")
    lame_duck_s: int = Field(
        5,
        ge=0,
        description="Seconds after SIGTERM in which readiness fails and requests are still served. ECS deregisters a "
        "task before or while it sends SIGTERM, so this covers the time until every node of the load balancer knows.",
    )
    drain_timeout_s: int = Field(30, gt=0, description="Most that a stop waits for admitted requests.")
    keep_alive_s: int = Field(
        75, gt=0, description="How long the server keeps an idle connection. Longer than the load balancer keeps it."
    )
    emf_interval_s: int = Field(15, ge=1, le=60, description="Seconds between two lines of metrics in the log.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Further settings of the server, as variables TABPFN_SERVE_<GROUP>_<NAME>."
    )

    @property
    def stop_s(self) -> int:
        """Seconds that a stop may take: lame duck, grace, drain and margin. The least stop timeout of a container."""
        return self.lame_duck_s + GRACE_S + self.drain_timeout_s + STOP_MARGIN_S

    @model_validator(mode="after")
    def _names_settings_and_distinct_models(self) -> Self:
        if foreign := [name for name in self.environment if not name.startswith("TABPFN_SERVE_")]:
            raise ValueError(f"environment names {foreign}, which are not settings of the server (TABPFN_SERVE_...)")
        if len({model.name for model in self.models}) < len(self.models):
            raise ValueError("two models have one name")
        return self


class LoadBalancerSettings(_Settings):
    """The load balancer of one service."""

    certificate_arn: str | None = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:acm:",
        description="Certificate for HTTPS. Without it the load balancer speaks plain HTTP, inside the VPC only.",
    )
    idle_timeout_s: int = Field(45, ge=1, le=4_000)
    deregistration_delay_s: int = Field(45, ge=0, le=3_600)


class RolloutSettings(_Settings):
    """How a new version replaces the old one. Alarms roll it back, whichever strategy is chosen."""

    strategy: Literal["rolling", "canary"] = "rolling"
    min_healthy_percent: int = Field(100, ge=0, le=100)
    max_percent: int = Field(200, ge=100, le=200)
    canary_percent: int = Field(10, ge=1, le=50)
    bake_minutes: int = Field(10, ge=1, le=1_440)


class ServiceSettings(_Settings):
    """What every service has, on whatever hosts it runs. A task has one container."""

    memory_mib: int
    stop_timeout_s: int | None = Field(
        None, ge=2, description="Seconds between SIGTERM and SIGKILL. Empty is what the server's own settings need."
    )
    start_grace_s: int = Field(
        600, ge=60, description="Seconds to load, fit and warm up before a failed health check counts."
    )
    min_tasks: int = Field(1, ge=0)
    max_tasks: int = Field(ge=1)
    load_balancer: LoadBalancerSettings = LoadBalancerSettings()

    def stop_s(self, server: ServerSettings) -> int:
        """Seconds between SIGTERM and SIGKILL: `stop_timeout_s`, or as long as a stop of the server may take."""
        return server.stop_s if self.stop_timeout_s is None else self.stop_timeout_s

    @model_validator(mode="after")
    def _tasks_are_in_order(self) -> Self:
        if self.min_tasks > self.max_tasks:
            raise ValueError(f"min_tasks is above max_tasks: {self.min_tasks} > {self.max_tasks}")
        return self


class GpuServiceSettings(ServiceSettings):
    """The service on GPUs: a task has one whole GPU."""

    capacity: Literal["managed_instances", "auto_scaling_group"] = "managed_instances"
    instance_types: tuple[str, ...] = Field(min_length=1, description="Rows of instance_types.yaml.")
    spot: bool = False
    disk_gib: int = Field(80, ge=50, description="Disk of an instance, for the image, logs, models and KV caches.")
    cpu_units: int = Field(3_584, ge=1_024)
    memory_mib: int = Field(14_336, ge=4_096)
    shm_mib: int = Field(1_024, ge=512, description="/dev/shm for Ray, part of the memory. Ray is given 100 MB of it.")
    start_grace_s: int = Field(900, ge=60)
    max_tasks: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(
        8.0, gt=0, description="Requests queued and in flight per task that scaling keeps as the average."
    )
    rollout: RolloutSettings = RolloutSettings()
    operator_access: bool = Field(False, description="Allow ECS Exec, and start Ray's dashboard in the container.")

    @model_validator(mode="after")
    def _instance_types_are_known(self) -> Self:
        if unknown := [name for name in self.instance_types if name not in instance_types()]:
            raise ValueError(f"{unknown} not in instance_types.yaml, which has {sorted(instance_types())}")
        return self


class CpuServiceSettings(ServiceSettings):
    """The fallback on Fargate, which has neither a GPU nor a size for /dev/shm: it runs uvicorn without Ray."""

    cpu_units: Literal[1024, 2048, 4096, 8192, 16384] = 4096
    memory_mib: int = Field(8_192, ge=2_048)
    max_tasks: int = Field(4, ge=1)
    target_cpu_percent: int = Field(70, ge=10, le=90)
    spot: bool = Field(False, description="Run every task beyond min_tasks on FARGATE_SPOT.")


class ObservabilitySettings(_Settings):
    """Thresholds of the alarms, how long logs are kept, and the address that the alarms are sent to."""

    p99_ms: float = Field(500.0, gt=0)
    refused_percent: float = Field(1.0, gt=0, le=100)
    error_percent: float = Field(1.0, gt=0, le=100)
    log_days: Literal[7, 14, 30, 60, 90, 180, 365] = 30
    email: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$")


class Stage(_Settings):
    """A whole stage file: everything that differs between one deployment and another."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{1,20}$")
    network: NetworkSettings = NetworkSettings()
    registry: RegistrySettings = RegistrySettings()
    server: ServerSettings = ServerSettings()
    gpu_service: GpuServiceSettings
    cpu_service: CpuServiceSettings | None = None
    observability: ObservabilitySettings = ObservabilitySettings()

    @model_validator(mode="after")
    def _containers_may_finish(self) -> Self:
        """Refuse a stage here, with a sentence. The policies check the same in a template, however it was made."""
        server = self.server
        for service in (self.gpu_service, self.cpu_service):
            if service is not None and service.stop_s(server) < server.stop_s:
                raise ValueError(
                    f"stop_timeout_s is {service.stop_timeout_s}, but lame_duck_s {server.lame_duck_s} and "
                    f"drain_timeout_s {server.drain_timeout_s} need {server.stop_s}"
                )
        if self.cpu_service is not None and self.cpu_service.stop_s(server) > MAX_FARGATE_STOP_S:
            raise ValueError(
                f"a stop of cpu_service may take {self.cpu_service.stop_s(server)} s and Fargate allows "
                f"{MAX_FARGATE_STOP_S} s; lower stop_timeout_s, drain_timeout_s or lame_duck_s"
            )
        return self


def read_stage(path: Path) -> Stage:
    """The stage that a file describes. Raises pydantic.ValidationError, which names the place of the fault."""
    return Stage.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def stage_names() -> list[str]:
    """The names of the stage files in the repository, sorted."""
    return sorted(path.stem for path in STAGES.glob("*.yaml"))
