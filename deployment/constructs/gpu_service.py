"""The GPU service: cluster, GPU capacity, tasks of one whole GPU each, load balancer, rollout and scaling."""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secrets
from constructs import Construct

from deployment.constructs.alarms import ServiceView, rollback_alarms
from deployment.constructs.container import (
    NAME,
    PORT,
    add_server_container,
    allow_reading_models,
    mount_for_operators,
    server_environment,
)
from deployment.constructs.gpu_capacity import add_gpu_capacity
from deployment.constructs.load_balancer import LoadBalancer, service_security_group
from deployment.constructs.logs import service_log_group
from deployment.constructs.network import Network
from deployment.constructs.registry import Registry
from deployment.settings import (
    METRIC_NAMESPACE,
    GpuServiceSettings,
    ObservabilitySettings,
    RolloutSettings,
    ServerSettings,
)


class GpuService(Construct):
    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        settings: GpuServiceSettings,
        server: ServerSettings,
        observability: ObservabilitySettings,
        network: Network,
        registry: Registry,
        image_tag: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._name, self._settings, self._server = name, settings, server
        log_group = service_log_group(self, "Log", observability=observability)
        self.cluster = self._cluster(network, log_group)
        provider = add_gpu_capacity(self, cluster=self.cluster, network=network, settings=settings)
        self.balancer = LoadBalancer(
            self,
            "LoadBalancer",
            network=network,
            settings=settings.load_balancer,
            access_logs=registry.access_logs,
            log_prefix="alb/gpu",
            deletion_protection=settings.min_tasks > 1,
            num_target_groups=2 if settings.rollout.strategy == "canary" else 1,
        )
        self.view = ServiceView(
            name=name, balancer=self.balancer, log_group=log_group, cluster=self.cluster, has_gpu=True
        )
        task = self._task(registry, image_tag, log_group)
        self.service = self._service(task, network, provider)
        self._receive_traffic()
        self._scale()
        self.view = self.view.with_service(self.service)

    def _cluster(self, network: Network, log_group: logs.ILogGroup) -> ecs.Cluster:
        return ecs.Cluster(
            self,
            "Cluster",
            vpc=network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENHANCED,
            # What operators type into a container is kept where the container's own words are.
            execute_command_configuration=ecs.ExecuteCommandConfiguration(
                logging=ecs.ExecuteCommandLogging.OVERRIDE,
                log_configuration=ecs.ExecuteCommandLogConfiguration(cloud_watch_log_group=log_group),
            ),
        )

    def _task(self, registry: Registry, image_tag: str, log_group: logs.ILogGroup) -> ecs.TaskDefinition:
        settings = self._settings
        managed = settings.capacity == "managed_instances"
        task = ecs.TaskDefinition(
            self,
            "Task",
            family=self._name,
            compatibility=ecs.Compatibility.MANAGED_INSTANCES if managed else ecs.Compatibility.EC2,
            network_mode=ecs.NetworkMode.AWS_VPC,
            cpu=str(settings.cpu_units),
            memory_mib=str(settings.memory_mib),
        )
        # Named by its ARN, or the CDK would write this stack's role into the key policy of the registry's: a circle.
        token = secrets.Secret.from_secret_complete_arn(self, "RayToken", registry.ray_token.secret_arn)
        container = add_server_container(
            task,
            image=registry.gpu_images,
            image_tag=image_tag,
            command=["serve", "--dashboard"] if settings.operator_access else ["serve"],
            environment=self._environment(registry),
            secrets={"RAY_AUTH_TOKEN": ecs.Secret.from_secrets_manager(token)},
            log_group=log_group,
            stop_timeout_s=settings.stop_timeout_s,
            start_grace_s=settings.start_grace_s,
            linux=ecs.LinuxParameters(self, "Linux", init_process_enabled=True, shared_memory_size=settings.shm_mib),
            num_gpus=1,
            memory_mib=settings.memory_mib,
        )
        if settings.operator_access:
            mount_for_operators(task, container)
        task.obtain_execution_role().add_to_principal_policy(
            iam.PolicyStatement(actions=["kms:Decrypt"], resources=[registry.key.key_arn])
        )
        allow_reading_models(task.task_role, models=registry.models, key=registry.key)
        return task

    def _environment(self, registry: Registry) -> dict[str, str]:
        shared = server_environment(self._server, models=registry.models, service=self._name, device="cuda:0")
        return {
            **shared,
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        }

    def _service(
        self, task: ecs.TaskDefinition, network: Network, provider: str
    ) -> ecs.FargateService | ecs.Ec2Service:
        settings, rollout = self._settings, self._settings.rollout
        alarms = rollback_alarms(self, view=self.view)
        canary = rollout.strategy == "canary"
        # `FargateService` is the CDK's construct for Managed Instances too; nothing here runs on Fargate.
        kind = ecs.FargateService if settings.capacity == "managed_instances" else ecs.Ec2Service
        group = service_security_group(self, "Tasks", network=network, callers=self.balancer.security_group)
        service = kind(
            self,
            "Service",
            cluster=self.cluster,
            task_definition=task,
            security_groups=[group],
            vpc_subnets=network.private_subnets,
            assign_public_ip=False if kind is ecs.FargateService else None,
            capacity_provider_strategies=[ecs.CapacityProviderStrategy(capacity_provider=provider, weight=1)],
            health_check_grace_period=Duration.seconds(settings.start_grace_s),
            min_healthy_percent=rollout.min_healthy_percent,
            max_healthy_percent=rollout.max_percent,
            availability_zone_rebalancing=_rebalancing(rollout),
            enable_execute_command=settings.operator_access,
            enable_ecs_managed_tags=True,
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
            deployment_alarms=ecs.DeploymentAlarmConfig(
                alarm_names=[alarm.alarm_name for alarm in alarms], behavior=ecs.AlarmBehavior.ROLLBACK_ON_ALARM
            ),
            circuit_breaker=None if canary else ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            deployment_strategy=ecs.DeploymentStrategy.CANARY if canary else ecs.DeploymentStrategy.ROLLING,
            bake_time=Duration.minutes(rollout.bake_minutes),
            canary_configuration=_canary(rollout) if canary else None,
        )
        if not canary:  # there the service names the rule itself
            service.node.add_dependency(self.balancer.rule)
        return service

    def _receive_traffic(self) -> None:
        alternate = None
        if len(self.balancer.target_groups) == 2:
            alternate = ecs.AlternateTarget(
                "AlternateTarget",
                alternate_target_group=self.balancer.target_groups[1],
                production_listener=ecs.ListenerRuleConfiguration.application_listener_rule(self.balancer.rule),
            )
        target = self.service.load_balancer_target(container_name=NAME, container_port=PORT, alternate_target=alternate)
        self.balancer.target_groups[0].add_target(target)

    def _scale(self) -> None:
        """By queued work per replica: each replica reports its own, so their average is per replica already."""
        count = self.service.auto_scale_task_count(
            min_capacity=self._settings.min_tasks, max_capacity=self._settings.max_tasks
        )
        count.scale_to_track_custom_metric(
            "OngoingRequests",
            metric=cloudwatch.Metric(
                namespace=METRIC_NAMESPACE,
                metric_name="OngoingRequests",
                dimensions_map={"Service": self._name},
                statistic="Average",
                period=Duration.minutes(1),
            ),
            target_value=self._settings.target_ongoing_requests,
            scale_out_cooldown=Duration.minutes(3),  # an instance and a model take that long to start
            scale_in_cooldown=Duration.minutes(10),
        )


def _rebalancing(rollout: RolloutSettings) -> ecs.AvailabilityZoneRebalancing:
    """It starts a task in another zone before it stops one, so it needs room above 100 percent."""
    if rollout.max_percent > 100:
        return ecs.AvailabilityZoneRebalancing.ENABLED
    return ecs.AvailabilityZoneRebalancing.DISABLED


def _canary(rollout: RolloutSettings) -> ecs.TrafficShiftConfig:
    return ecs.TrafficShiftConfig(
        step_percent=rollout.canary_percent, step_bake_time=Duration.minutes(rollout.bake_minutes)
    )
