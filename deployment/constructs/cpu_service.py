"""The service without a GPU, on Fargate. It runs `up` (uvicorn): Ray needs shared memory, which Fargate cannot set."""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_ecs as ecs
from constructs import Construct

from deployment.constructs.service import ServerService, ServiceParts
from deployment.settings import CpuServiceSettings


class CpuService(ServerService):
    """The fallback of a stage: tasks on Fargate, scaled by their use of the processor."""

    _settings: CpuServiceSettings

    def __init__(
        self, scope: Construct, construct_id: str, *, parts: ServiceParts, settings: CpuServiceSettings
    ) -> None:
        super().__init__(scope, construct_id, parts=parts, settings=settings, has_gpu=False)

    def _cluster(self) -> ecs.Cluster:
        return self._new_cluster(enable_fargate_capacity_providers=True)

    def _task(self) -> ecs.FargateTaskDefinition:
        settings = self._settings
        task = ecs.FargateTaskDefinition(
            self, "Task", family=self._parts.name, cpu=settings.cpu_units, memory_limit_mib=settings.memory_mib
        )
        num_threads = max(1, settings.cpu_units // 1_024 - 1)  # one core stays for the event loop
        self._add_container(
            task,
            image=self._parts.registry.cpu_images,
            command=["up"],
            device="cpu",
            environment={"TABPFN_SERVE_ENGINE_NUM_THREADS": str(num_threads)},
        )
        return task

    def _service(self, task: ecs.TaskDefinition) -> ecs.FargateService:
        return ecs.FargateService(
            self,
            "Service",
            **self._options(task, min_healthy=100, max_healthy=200),
            assign_public_ip=False,
            platform_version=ecs.FargatePlatformVersion.VERSION1_4,
            capacity_provider_strategies=self._capacity(),
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
        )

    def _capacity(self) -> list[ecs.CapacityProviderStrategy]:
        if not self._settings.spot:
            return [ecs.CapacityProviderStrategy(capacity_provider="FARGATE", weight=1)]
        return [
            ecs.CapacityProviderStrategy(capacity_provider="FARGATE", base=self._settings.min_tasks, weight=0),
            ecs.CapacityProviderStrategy(capacity_provider="FARGATE_SPOT", weight=1),
        ]

    def _scale(self, count: ecs.ScalableTaskCount) -> None:
        count.scale_on_cpu_utilization(
            "Cpu",
            target_utilization_percent=self._settings.target_cpu_percent,
            scale_out_cooldown=Duration.minutes(1),
            scale_in_cooldown=Duration.minutes(5),
        )
