"""A stage file, typed: frozen, unknown keys are errors, and what contradicts itself is refused while it is read.

The server's own settings that a deployment must know (drain, deadlines, keep-alive) stand here too, because the time
limits of load balancer and container follow from them; they reach the container as `TABPFN_SERVE_<OWNER>_<NAME>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployment.instances import instance_types

STAGES = Path(__file__).parent / "stages"

METRIC_NAMESPACE = "TabPFNServe"
"""CloudWatch's name for what the server reports of itself."""

STOP_MARGIN_S = 20
"""What a container needs beyond its drain: closing the door, the last bytes, Ray (docs/operations.md, Stopping)."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSettings(_Settings):
    cidr: str = Field("10.40.0.0/16", pattern=r"^10\.\d{1,3}\.0\.0/16$")
    nat_gateways: int = Field(1, ge=0, le=2)
    endpoints: bool = Field(
        False, description="Interface endpoints to the AWS services that tasks call, billed hourly."
    )

    @model_validator(mode="after")
    def _has_a_way_out(self) -> Self:
        if not self.endpoints and not self.nat_gateways:
            raise ValueError(
                "without endpoints, tasks reach ECR and CloudWatch through a NAT gateway: nat_gateways is 0"
            )
        return self


class RegistrySettings(_Settings):
    kept_images: int = Field(20, ge=2, description="Images that a repository keeps; the oldest go first.")
    noncurrent_days: int = Field(90, ge=1, description="How long a replaced object of the models bucket is kept.")


class ModelSettings(_Settings):
    """One model of the models bucket."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    key: str = Field(min_length=1, description="Folder or object in the models bucket, such as `fraud/1`.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ServerSettings(_Settings):
    """What the containers of both services are told."""

    models: tuple[ModelSettings, ...] = Field((), description="Empty serves the demo model of the image.")
    default_timeout_ms: int = Field(30_000, gt=0, description="The longest that a caller waits for its answer.")
    drain_timeout_s: int = Field(30, gt=0)
    keep_alive_s: int = Field(75, gt=0, description="How long the server keeps an idle connection: beyond the ALB's.")
    emf_interval_s: int = Field(15, ge=1, le=60, description="Seconds between two lines of metrics in the log.")
    environment: dict[str, str] = Field(default_factory=dict, description="Further TABPFN_SERVE_<OWNER>_<NAME>.")

    @model_validator(mode="after")
    def _names_are_ours(self) -> Self:
        if foreign := [name for name in self.environment if not name.startswith("TABPFN_SERVE_")]:
            raise ValueError(f"not settings of the server: {foreign}")
        if len({model.name for model in self.models}) < len(self.models):
            raise ValueError("two models have one name")
        return self


class LoadBalancerSettings(_Settings):
    certificate_arn: str | None = Field(
        None, pattern=r"^arn:aws[a-z-]*:acm:", description="Without it the internal ALB speaks plain HTTP in the VPC."
    )
    idle_timeout_s: int = Field(45, ge=1, le=4_000)
    deregistration_delay_s: int = Field(45, ge=0, le=3_600)


class RolloutSettings(_Settings):
    """How a new version replaces the old one. Either way alarms roll it back."""

    strategy: Literal["rolling", "canary"] = "rolling"
    min_healthy_percent: int = Field(100, ge=0, le=100)
    max_percent: int = Field(200, ge=100, le=200)
    canary_percent: int = Field(10, ge=1, le=50)
    bake_minutes: int = Field(10, ge=1, le=1_440)


class GpuServiceSettings(_Settings):
    """One task = one container = one whole GPU."""

    capacity: Literal["managed_instances", "auto_scaling_group"] = "managed_instances"
    instance_types: tuple[str, ...] = Field(min_length=1, description="Rows of instance_types.yaml.")
    spot: bool = False
    disk_gib: int = Field(80, ge=50, description="The instance's disk: image, logs, models and KV caches.")
    cpu_units: int = Field(3_584, ge=1_024)
    memory_mib: int = Field(14_336, ge=4_096)
    shm_mib: int = Field(1_024, ge=512, description="/dev/shm for Ray, part of the memory; Ray is given 100 MB.")
    stop_timeout_s: int = Field(60, ge=2)
    start_grace_s: int = Field(900, ge=60, description="Load, fit and warm-up before failed health checks count.")
    min_tasks: int = Field(1, ge=0)
    max_tasks: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(
        8.0, gt=0, description="Queued and in flight per task, on average, that scaling holds."
    )
    rollout: RolloutSettings = RolloutSettings()
    load_balancer: LoadBalancerSettings = LoadBalancerSettings()
    operator_access: bool = Field(False, description="ECS Exec, and Ray's dashboard to forward a port to.")

    @model_validator(mode="after")
    def _tasks_are_in_order(self) -> Self:
        if unknown := [name for name in self.instance_types if name not in instance_types()]:
            raise ValueError(f"not in instance_types.yaml: {unknown}")
        if self.min_tasks > self.max_tasks:
            raise ValueError("min_tasks is above max_tasks")
        return self


class CpuServiceSettings(_Settings):
    """The fallback on Fargate: no GPU, no shm, so uvicorn without Ray."""

    cpu_units: Literal[1024, 2048, 4096, 8192, 16384] = 4096
    memory_mib: int = Field(8_192, ge=2_048)
    stop_timeout_s: int = Field(60, ge=2, le=120)
    start_grace_s: int = Field(600, ge=60)
    min_tasks: int = Field(1, ge=0)
    max_tasks: int = Field(4, ge=1)
    target_cpu_percent: int = Field(70, ge=10, le=90)
    spot: bool = Field(False, description="FARGATE_SPOT for every task beyond min_tasks.")
    load_balancer: LoadBalancerSettings = LoadBalancerSettings()


class ObservabilitySettings(_Settings):
    p99_ms: float = Field(500.0, gt=0)
    refused_percent: float = Field(1.0, gt=0, le=100)
    error_percent: float = Field(1.0, gt=0, le=100)
    log_days: Literal[7, 14, 30, 60, 90, 180, 365] = 30
    email: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$")


class Stage(_Settings):
    """Everything that differs between one deployment and another."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{1,20}$")
    network: NetworkSettings = NetworkSettings()
    registry: RegistrySettings = RegistrySettings()
    server: ServerSettings = ServerSettings()
    gpu_service: GpuServiceSettings
    cpu_service: CpuServiceSettings | None = None
    observability: ObservabilitySettings = ObservabilitySettings()

    @model_validator(mode="after")
    def _containers_may_finish(self) -> Self:
        """Refused here with a sentence; the policies check the same over the templates, whoever wrote them."""
        needed = self.server.drain_timeout_s + STOP_MARGIN_S
        for service in (self.gpu_service, self.cpu_service):
            if service is not None and service.stop_timeout_s < needed:
                raise ValueError(f"stop_timeout_s is {service.stop_timeout_s}, the drain needs {needed}")
        return self


def read_stage(path: Path) -> Stage:
    """Raises pydantic.ValidationError with the place of the fault."""
    return Stage.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def stage_names() -> list[str]:
    """The stages that are in the repository."""
    return sorted(path.stem for path in STAGES.glob("*.yaml"))
