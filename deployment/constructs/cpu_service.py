"""The fallback without a GPU: Fargate, `up` (uvicorn, no Ray, because Fargate has no setting for /dev/shm)."""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_logs as logs
from constructs import Construct

from deployment.constructs.alarms import ServiceView, rollback_alarms
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
from deployment.settings import CpuServiceSettings, ObservabilitySettings, ServerSettings


class CpuService(Construct):
    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        settings: CpuServiceSettings,
        server: ServerSettings,
        observability: ObservabilitySettings,
        network: Network,
        registry: Registry,
        image_tag: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._name, self._settings, self._server = name, settings, server
        self.cluster = ecs.Cluster(
            self,
            "Cluster",
            vpc=network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENHANCED,
            enable_fargate_capacity_providers=True,
        )
        self.balancer = LoadBalancer(
            self,
            "LoadBalancer",
            network=network,
            settings=settings.load_balancer,
            access_logs=registry.access_logs,
            log_prefix="alb/cpu",
            deletion_protection=False,
            num_target_groups=1,
        )
        log_group = service_log_group(self, "Log", observability=observability)
        view = ServiceView(name=name, balancer=self.balancer, log_group=log_group, cluster=self.cluster, has_gpu=False)
        task = self._task(registry, image_tag, log_group)
        self.service = self._service(task, network, view)
        self._scale()
        self.view = view.with_service(self.service)

    def _task(self, registry: Registry, image_tag: str, log_group: logs.ILogGroup) -> ecs.FargateTaskDefinition:
        settings = self._settings
        task = ecs.FargateTaskDefinition(
            self, "Task", family=self._name, cpu=settings.cpu_units, memory_limit_mib=settings.memory_mib
        )
        shared = server_environment(self._server, models=registry.models, service=self._name, device="cpu")
        num_threads = max(1, settings.cpu_units // 1_024 - 1)  # one core stays for the event loop
        add_server_container(
            task,
            image=registry.cpu_images,
            image_tag=image_tag,
            command=["up"],
            environment={**shared, "TABPFN_SERVE_ENGINE_NUM_THREADS": str(num_threads)},
            secrets={},
            log_group=log_group,
            stop_timeout_s=settings.stop_timeout_s,
            start_grace_s=settings.start_grace_s,
            linux=ecs.LinuxParameters(self, "Linux", init_process_enabled=True),
            num_gpus=None,
            memory_mib=settings.memory_mib,
        )
        allow_reading_models(task.task_role, models=registry.models, key=registry.key)
        return task

    def _service(self, task: ecs.FargateTaskDefinition, network: Network, view: ServiceView) -> ecs.FargateService:
        alarms = rollback_alarms(self, view=view)
        group = service_security_group(self, "Tasks", network=network, callers=self.balancer.security_group)
        service = ecs.FargateService(
            self,
            "Service",
            cluster=self.cluster,
            task_definition=task,
            security_groups=[group],
            vpc_subnets=network.private_subnets,
            assign_public_ip=False,
            platform_version=ecs.FargatePlatformVersion.VERSION1_4,
            capacity_provider_strategies=self._capacity(),
            health_check_grace_period=Duration.seconds(self._settings.start_grace_s),
            min_healthy_percent=100,
            max_healthy_percent=200,
            availability_zone_rebalancing=ecs.AvailabilityZoneRebalancing.ENABLED,
            enable_ecs_managed_tags=True,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            deployment_alarms=ecs.DeploymentAlarmConfig(
                alarm_names=[alarm.alarm_name for alarm in alarms], behavior=ecs.AlarmBehavior.ROLLBACK_ON_ALARM
            ),
        )
        target = service.load_balancer_target(container_name=NAME, container_port=PORT)
        self.balancer.target_groups[0].add_target(target)
        service.node.add_dependency(self.balancer.rule)
        return service

    def _capacity(self) -> list[ecs.CapacityProviderStrategy]:
        if not self._settings.spot:
            return [ecs.CapacityProviderStrategy(capacity_provider="FARGATE", weight=1)]
        return [
            ecs.CapacityProviderStrategy(capacity_provider="FARGATE", base=self._settings.min_tasks, weight=0),
            ecs.CapacityProviderStrategy(capacity_provider="FARGATE_SPOT", weight=1),
        ]

    def _scale(self) -> None:
        count = self.service.auto_scale_task_count(
            min_capacity=self._settings.min_tasks, max_capacity=self._settings.max_tasks
        )
        count.scale_on_cpu_utilization(
            "Cpu",
            target_utilization_percent=self._settings.target_cpu_percent,
            scale_out_cooldown=Duration.minutes(1),
            scale_in_cooldown=Duration.minutes(5),
        )
