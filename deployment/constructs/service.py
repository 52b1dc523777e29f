"""What the GPU service and the CPU service have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aws_cdk import Duration
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from constructs import Construct

from deployment.constructs.alarms import rollback_alarms
from deployment.constructs.container import (
    NAME,
    PORT,
    add_server_container,
    allow_reading_models,
    server_environment,
)
from deployment.constructs.load_balancer import LoadBalancer, service_security_group
from deployment.constructs.logs import service_log_group
from deployment.constructs.network import Network
from deployment.constructs.registry import Registry
from deployment.constructs.service_metrics import ServiceMetrics
from deployment.settings import ObservabilitySettings, ServerSettings, ServiceSettings

AnyService = ecs.FargateService | ecs.Ec2Service


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What a stage gives to each of its services."""

    name: str
    """Name of the service: also of its task family, its alarms, and the dimension `Service` of its metrics."""

    server: ServerSettings
    observability: ObservabilitySettings
    network: Network
    registry: Registry
    image_tag: str


class ServerService(Construct):
    """An ECS service of tasks with one container each, behind an internal load balancer of its own.

    A subclass chooses the hosts: it makes the cluster, the task definition, the ECS service and the scaling. This class
    fixes the order in which they are made, and makes what both kinds share.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        parts: ServiceParts,
        settings: ServiceSettings,
        has_gpu: bool,
        deletion_protection: bool = False,
        num_target_groups: int = 1,
    ) -> None:
        super().__init__(scope, construct_id)
        self._parts, self._settings = parts, settings
        self._log_group = service_log_group(self, "Log", observability=parts.observability)
        self.cluster = self._cluster()
        self.balancer = LoadBalancer(
            self,
            "LoadBalancer",
            network=parts.network,
            settings=settings.load_balancer,
            access_logs=parts.registry.access_logs,
            log_prefix="alb/gpu" if has_gpu else "alb/cpu",
            deletion_protection=deletion_protection,
            num_target_groups=num_target_groups,
        )
        self.metrics = ServiceMetrics(parts.name, self.balancer, has_gpu)
        self.service = self._service(self._task())
        self._receive_traffic()
        self._scale(
            self.service.auto_scale_task_count(min_capacity=settings.min_tasks, max_capacity=settings.max_tasks)
        )

    @property
    def always_on(self) -> bool:
        """Whether the service never has zero tasks, so that missing metrics are a fault."""
        return self._settings.min_tasks > 0

    @abstractmethod
    def _cluster(self) -> ecs.Cluster: ...

    @abstractmethod
    def _task(self) -> ecs.TaskDefinition: ...

    @abstractmethod
    def _service(self, task: ecs.TaskDefinition) -> AnyService: ...

    @abstractmethod
    def _scale(self, count: ecs.ScalableTaskCount) -> None: ...

    def _receive_traffic(self) -> None:
        target = self.service.load_balancer_target(container_name=NAME, container_port=PORT)
        self.balancer.target_groups[0].add_target(target)
        self.service.node.add_dependency(self.balancer.rule)

    def _new_cluster(self, **options: Any) -> ecs.Cluster:
        return ecs.Cluster(
            self,
            "Cluster",
            vpc=self._parts.network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENHANCED,
            **options,
        )

    def _add_container(
        self,
        task: ecs.TaskDefinition,
        *,
        image: ecr.IRepository,
        command: list[str],
        device: str,
        environment: Mapping[str, str],
        shm_mib: int | None = None,
        secrets: Mapping[str, ecs.Secret] | None = None,
        num_gpus: int | None = None,
    ) -> ecs.ContainerDefinition:
        """Add the server's container; `environment` is added to the variables that both services have."""
        parts, registry = self._parts, self._parts.registry
        # The init process forwards SIGTERM to the server.
        linux = ecs.LinuxParameters(self, "Linux", init_process_enabled=True, shared_memory_size=shm_mib)
        linux.drop_capabilities(ecs.Capability.ALL)
        shared = server_environment(parts.server, models=registry.models, service=parts.name, device=device)
        container = add_server_container(
            task,
            settings=self._settings,
            stop_timeout_s=self._settings.stop_s(parts.server),
            image=image,
            image_tag=parts.image_tag,
            command=command,
            environment={**shared, **environment},
            secrets=secrets or {},
            log_group=self._log_group,
            linux=linux,
            num_gpus=num_gpus,
        )
        allow_reading_models(task.task_role, models=registry.models, key=registry.key)
        return container

    def _options(self, task: ecs.TaskDefinition, *, min_healthy: int, max_healthy: int) -> dict[str, Any]:
        """The arguments of the ECS service that are the same on all hosts. The limits are percent of its tasks."""
        network = self._parts.network
        alarms = rollback_alarms(self, metrics=self.metrics)
        group = service_security_group(self, "Tasks", network=network, callers=self.balancer.security_group)
        return {
            "cluster": self.cluster,
            "task_definition": task,
            "security_groups": [group],
            "vpc_subnets": network.private_subnets,
            "health_check_grace_period": Duration.seconds(self._settings.start_grace_s),
            "min_healthy_percent": min_healthy,
            "max_healthy_percent": max_healthy,
            "availability_zone_rebalancing": _rebalancing(max_healthy),
            "enable_ecs_managed_tags": True,
            "propagate_tags": ecs.PropagatedTagSource.SERVICE,
            "deployment_alarms": ecs.DeploymentAlarmConfig(
                alarm_names=[alarm.alarm_name for alarm in alarms], behavior=ecs.AlarmBehavior.ROLLBACK_ON_ALARM
            ),
        }


def _rebalancing(max_healthy: int) -> ecs.AvailabilityZoneRebalancing:
    """Rebalancing starts a task in another zone before it stops one, so it needs room above 100 percent."""
    if max_healthy > 100:
        return ecs.AvailabilityZoneRebalancing.ENABLED
    return ecs.AvailabilityZoneRebalancing.DISABLED
