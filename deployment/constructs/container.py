"""The one container of a task: not root, read-only root file system, no capabilities, stopped by SIGTERM.

What it relies on in the image: the entry point takes `serve` (Ray) or `up` (uvicorn) and listens on 8080. The user is
10001. Only /tmp and /var/cache/tabpfn-serve are written to, and both are a VOLUME whose owner may write: ECS gives an
empty volume the owner and mode of the image's folder. Settings are variables `TABPFN_SERVE_<GROUP>_<NAME>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from aws_cdk import Duration, Stack
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3

from deployment.settings import METRIC_NAMESPACE, ModelSettings, ServerSettings, ServiceSettings

PORT = 8080
USER = "10001:10001"
NAME = "tabpfn-serve"
READY_PATH = "/v2/health/ready"

_CACHE = "/var/cache/tabpfn-serve"
_SSM_AGENT_WRITES = {
    "managed-agents": "/managed-agents",
    "ssm-state": "/var/lib/amazon/ssm",
    "ssm-log": "/var/log/amazon/ssm",
}
_MAX_START_PERIOD_S = 300
_OPEN_FILES = 65_536

_ASK_READINESS = (
    f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}{READY_PATH}', timeout=4)"  # 503 raises
)


def add_server_container(
    task: ecs.TaskDefinition,
    *,
    settings: ServiceSettings,
    stop_timeout_s: int,
    image: ecr.IRepository,
    image_tag: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    secrets: Mapping[str, ecs.Secret],
    log_group: logs.ILogGroup,
    linux: ecs.LinuxParameters,
    num_gpus: int | None,
) -> ecs.ContainerDefinition:
    """Add the container of the server to a task and return it."""
    container = task.add_container(
        NAME,
        container_name=NAME,
        image=ecs.ContainerImage.from_ecr_repository(image, image_tag),
        command=list(command),
        environment=dict(environment),
        secrets=dict(secrets),
        user=USER,
        readonly_root_filesystem=True,
        privileged=False,
        linux_parameters=linux,
        gpu_count=num_gpus,
        memory_limit_mib=settings.memory_mib,
        stop_timeout=Duration.seconds(stop_timeout_s),
        logging=ecs.LogDriver.aws_logs(stream_prefix=NAME, log_group=log_group),
        port_mappings=[ecs.PortMapping(container_port=PORT, protocol=ecs.Protocol.TCP)],
        health_check=_health_check(settings.start_grace_s),
    )
    # Each caller has a socket, and Ray has its own. Some hosts allow 1,024 by default.
    container.add_ulimits(ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=_OPEN_FILES, hard_limit=_OPEN_FILES))
    _mount(task, container, {"tmp": "/tmp", "cache": _CACHE})
    return container


def _health_check(start_grace_s: int) -> ecs.HealthCheck:
    return ecs.HealthCheck(
        command=["CMD", "python3", "-IS", "-c", _ASK_READINESS],
        interval=Duration.seconds(10),
        timeout=Duration.seconds(5),
        retries=3,
        start_period=Duration.seconds(min(start_grace_s, _MAX_START_PERIOD_S)),
    )


def mount_for_operators(task: ecs.TaskDefinition, container: ecs.ContainerDefinition) -> None:
    """Add the volumes that the agent of ECS Exec writes to, because the root file system is read-only."""
    _mount(task, container, _SSM_AGENT_WRITES)


def _mount(task: ecs.TaskDefinition, container: ecs.ContainerDefinition, paths: Mapping[str, str]) -> None:
    for name, path in paths.items():
        task.add_volume(name=name)
        container.add_mount_points(ecs.MountPoint(container_path=path, source_volume=name, read_only=False))


def server_environment(settings: ServerSettings, *, models: s3.IBucket, service: str, device: str) -> dict[str, str]:
    """The environment variables that the containers of both services get: the server's settings, and the region.

    The stage's own `environment` comes last, so it may replace any of them.
    """
    environment = {
        "AWS_REGION": Stack.of(models).region,
        "TABPFN_SERVE_ENGINE_DEVICE": device,
        "TABPFN_SERVE_ENGINE_KV_CACHE_DIR": f"{_CACHE}/kv",
        "TABPFN_SERVE_STORE_DOWNLOAD_DIR": f"{_CACHE}/models",
        "TABPFN_SERVE_API_LAME_DUCK_S": str(settings.lame_duck_s),
        "TABPFN_SERVE_API_DRAIN_TIMEOUT_S": str(settings.drain_timeout_s),
        "TABPFN_SERVE_API_KEEP_ALIVE_S": str(settings.keep_alive_s),
        "TABPFN_SERVE_BATCHING_DEFAULT_TIMEOUT_MS": str(settings.default_timeout_ms),
        "TABPFN_SERVE_METRICS_EMF_NAMESPACE": METRIC_NAMESPACE,
        "TABPFN_SERVE_METRICS_EMF_SERVICE": service,
        "TABPFN_SERVE_METRICS_EMF_INTERVAL_S": str(settings.emf_interval_s),
    }
    if settings.models:
        environment["TABPFN_SERVE_STORE_MODELS"] = json.dumps(
            [_model(model, models.bucket_name) for model in settings.models], separators=(",", ":")
        )
    return {**environment, **settings.environment}


def _model(model: ModelSettings, bucket: str) -> dict[str, str]:
    return {"name": model.name, "uri": f"s3://{bucket}/{model.key}", "sha256": model.sha256}


def allow_reading_models(role: iam.IRole, *, models: s3.IBucket, key: kms.IKey) -> None:
    """Let a task list the models bucket and read its objects. The CDK's `grant_read` would allow more actions."""
    role.add_to_principal_policy(iam.PolicyStatement(actions=["s3:GetObject"], resources=[models.arn_for_objects("*")]))
    role.add_to_principal_policy(iam.PolicyStatement(actions=["s3:ListBucket"], resources=[models.bucket_arn]))
    region = Stack.of(role).region
    role.add_to_principal_policy(
        iam.PolicyStatement(
            actions=["kms:Decrypt"],
            resources=[key.key_arn],
            conditions={"StringEquals": {"kms:ViaService": f"s3.{region}.amazonaws.com"}},
        )
    )
