"""The service on GPUs. Each task has one container and one whole GPU."""

from __future__ import annotations

from typing import Any

from aws_cdk import Duration
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_secretsmanager as secrets
from constructs import Construct

from deployment.constructs.container import NAME, PORT, mount_for_operators
from deployment.constructs.gpu_capacity import add_gpu_capacity
from deployment.constructs.service import AnyService, ServerService, ServiceParts
from deployment.settings import GpuServiceSettings


class GpuService(ServerService):
    """Tasks on GPU instances, scaled by the requests that each replica has queued and in flight."""

    _settings: GpuServiceSettings

    def __init__(
        self, scope: Construct, construct_id: str, *, parts: ServiceParts, settings: GpuServiceSettings
    ) -> None:
        self._canary = settings.rollout.strategy == "canary"
        super().__init__(
            scope,
            construct_id,
            parts=parts,
            settings=settings,
            has_gpu=True,
            deletion_protection=settings.min_tasks > 1,
            num_target_groups=2 if self._canary else 1,
        )

    def _cluster(self) -> ecs.Cluster:
        cluster = self._new_cluster(
            # What operators type into a container is logged where the container's own output is.
            execute_command_configuration=ecs.ExecuteCommandConfiguration(
                logging=ecs.ExecuteCommandLogging.OVERRIDE,
                log_configuration=ecs.ExecuteCommandLogConfiguration(cloud_watch_log_group=self._log_group),
            ),
        )
        self._capacity_provider = add_gpu_capacity(
            self, cluster=cluster, network=self._parts.network, settings=self._settings
        )
        return cluster

    def _task(self) -> ecs.TaskDefinition:
        settings, registry = self._settings, self._parts.registry
        managed = settings.capacity == "managed_instances"
        task = ecs.TaskDefinition(
            self,
            "Task",
            family=self._parts.name,
            compatibility=ecs.Compatibility.MANAGED_INSTANCES if managed else ecs.Compatibility.EC2,
            network_mode=ecs.NetworkMode.AWS_VPC,
            cpu=str(settings.cpu_units),
            memory_mib=str(settings.memory_mib),
        )
        # Imported by its ARN. Otherwise the CDK would name this stack's role in the key policy of the registry's stack,
        # and each stack would need the other first.
        token = secrets.Secret.from_secret_complete_arn(self, "RayToken", registry.ray_token.secret_arn)
        container = self._add_container(
            task,
            image=registry.gpu_images,
            command=["serve", "--dashboard"] if settings.operator_access else ["serve"],
            device="cuda:0",
            environment={"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
            secrets={"RAY_AUTH_TOKEN": ecs.Secret.from_secrets_manager(token)},
            shm_mib=settings.shm_mib,
            num_gpus=1,
        )
        if settings.operator_access:
            mount_for_operators(task, container)
        task.obtain_execution_role().add_to_principal_policy(
            iam.PolicyStatement(actions=["kms:Decrypt"], resources=[registry.key.key_arn])
        )
        return task

    def _service(self, task: ecs.TaskDefinition) -> AnyService:
        rollout = self._settings.rollout
        options = self._options(task, min_healthy=rollout.min_healthy_percent, max_healthy=rollout.max_percent)
        options |= self._rollout_options() | {
            "capacity_provider_strategies": [
                ecs.CapacityProviderStrategy(capacity_provider=self._capacity_provider, weight=1)
            ],
            "enable_execute_command": self._settings.operator_access,
        }
        if self._settings.capacity == "managed_instances":
            # `FargateService` is the CDK's construct for Managed Instances too. Nothing here runs on Fargate.
            return ecs.FargateService(self, "Service", assign_public_ip=False, **options)
        return ecs.Ec2Service(self, "Service", **options)

    def _rollout_options(self) -> dict[str, Any]:
        bake_time = Duration.minutes(self._settings.rollout.bake_minutes)
        if not self._canary:
            return {
                "deployment_strategy": ecs.DeploymentStrategy.ROLLING,
                "bake_time": bake_time,
                "circuit_breaker": ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            }
        return {
            "deployment_strategy": ecs.DeploymentStrategy.CANARY,
            "bake_time": bake_time,
            "canary_configuration": ecs.TrafficShiftConfig(
                step_percent=self._settings.rollout.canary_percent, step_bake_time=bake_time
            ),
        }

    def _receive_traffic(self) -> None:
        if not self._canary:
            super()._receive_traffic()
            return
        # ECS shifts traffic between the two target groups. The service names the listener's rule itself.
        alternate = ecs.AlternateTarget(
            "AlternateTarget",
            alternate_target_group=self.balancer.target_groups[1],
            production_listener=ecs.ListenerRuleConfiguration.application_listener_rule(self.balancer.rule),
        )
        target = self.service.load_balancer_target(container_name=NAME, container_port=PORT, alternate_target=alternate)
        self.balancer.target_groups[0].add_target(target)

    def _scale(self, count: ecs.ScalableTaskCount) -> None:
        # Each replica reports its own requests, so the average over all reports is the average per replica.
        count.scale_to_track_custom_metric(
            "OngoingRequests",
            metric=self.metrics.reported("OngoingRequests", "Average"),
            target_value=self._settings.target_ongoing_requests,
            scale_out_cooldown=Duration.minutes(3),  # an instance and a model take that long to start
            scale_in_cooldown=Duration.minutes(10),
        )
