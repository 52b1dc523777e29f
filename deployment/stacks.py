"""Which constructs make which stack. In the order of deployment: network, registry, services, observability.

Stacks are joined by exports and imports of CloudFormation itself, so that `aws cloudformation deploy`, one template
after the other, is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cdk_nag
from aws_cdk import App, BootstraplessSynthesizer, CfnParameter, Stack, Tags, Validations

from deployment.acknowledgements import acknowledge
from deployment.constructs.alarms import ServiceView
from deployment.constructs.cpu_service import CpuService
from deployment.constructs.gpu_service import GpuService
from deployment.constructs.logs import log_retention
from deployment.constructs.network import Network
from deployment.constructs.observability import Observability
from deployment.constructs.registry import Registry
from deployment.settings import Stage, read_stage

IMAGE_TAG_PATTERN = r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$"
"""A version, with a commit behind it if you like: never `latest`."""


def build(path: Path, *, outdir: str, context: Mapping[str, Any], acknowledged: bool) -> App:
    """The app of a stage file; cdk-nag's findings fail its synthesis unless they are acknowledged."""
    stage = read_stage(path)
    app = App(outdir=outdir, analytics_reporting=False, context=dict(context))
    Validations.of(app).add_plugins(cdk_nag.AwsSolutionsChecks(app))
    network = Network(
        _stack(app, stage, "network"),
        "Network",
        settings=stage.network,
        log_retention=log_retention(stage.observability),
    )
    registry = Registry(_stack(app, stage, "registry"), "Registry", settings=stage.registry, stage=stage.name)
    views = _services(app, stage, network, registry)
    minimum = {f"tabpfn-{stage.name}-gpu": stage.gpu_service.min_tasks}
    if stage.cpu_service is not None:
        minimum[f"tabpfn-{stage.name}-cpu"] = stage.cpu_service.min_tasks
    Observability(
        _stack(app, stage, "observability"),
        "Observability",
        stage=stage.name,
        settings=stage.observability,
        services=views,
        always_on=[name for name, tasks in minimum.items() if tasks > 0],
    )
    if acknowledged:
        acknowledge(app, stage.name)
    return app


def _services(app: App, stage: Stage, network: Network, registry: Registry) -> list[ServiceView]:
    gpu = _stack(app, stage, "gpu-service")
    views = [
        GpuService(
            gpu,
            "GpuService",
            name=f"tabpfn-{stage.name}-gpu",
            settings=stage.gpu_service,
            server=stage.server,
            observability=stage.observability,
            network=network,
            registry=registry,
            image_tag=_image_tag(gpu),
        ).view
    ]
    if stage.cpu_service is not None:
        cpu = _stack(app, stage, "cpu-service")
        views.append(
            CpuService(
                cpu,
                "CpuService",
                name=f"tabpfn-{stage.name}-cpu",
                settings=stage.cpu_service,
                server=stage.server,
                observability=stage.observability,
                network=network,
                registry=registry,
                image_tag=_image_tag(cpu),
            ).view
        )
    return views


def _stack(app: App, stage: Stage, name: str) -> Stack:
    stack = Stack(
        app,
        f"tabpfn-{stage.name}-{name}",  # names that CDK makes from it, such as of roles, then differ between stages
        stack_name=f"tabpfn-{stage.name}-{name}",
        description=f"tabpfn-serve, stage {stage.name}: {name}",
        synthesizer=BootstraplessSynthesizer(),
    )
    Tags.of(stack).add("project", "tabpfn-serve")
    Tags.of(stack).add("stage", stage.name)
    return stack


def _image_tag(stack: Stack) -> str:
    """A parameter without a default: a release is a new value of it, not a new template."""
    parameter = CfnParameter(
        stack,
        "ImageTag",
        type="String",
        allowed_pattern=IMAGE_TAG_PATTERN,
        constraint_description="a version such as 0.1.0 or 0.1.0-4211024, never latest",
        description="Tag of the image in this stage's repository",
    )
    return parameter.value_as_string
