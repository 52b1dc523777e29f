"""The stacks of a stage, in the order of deployment: network, registry, services, observability.

CloudFormation's own exports and imports join the stacks. So it is enough to deploy one template after the other with
`aws cloudformation deploy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cdk_nag
from aws_cdk import App, BootstraplessSynthesizer, CfnParameter, Stack, Tags, Validations

from deployment.acknowledgements import acknowledge
from deployment.constructs.cpu_service import CpuService
from deployment.constructs.gpu_service import GpuService
from deployment.constructs.logs import log_retention
from deployment.constructs.network import Network
from deployment.constructs.observability import Observability
from deployment.constructs.registry import Registry
from deployment.constructs.service import ServerService, ServiceParts
from deployment.settings import Stage, read_stage

IMAGE_TAG_PATTERN = r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$"
"""A version, with a suffix such as a commit if you like. The pattern refuses `latest`."""


def build(path: Path, *, outdir: str, context: Mapping[str, Any], acknowledged: bool) -> App:
    """The CDK app of a stage file, not yet synthesised.

    Its synthesis writes into `outdir` and fails on every finding of cdk-nag, except on those in acknowledgements.py if
    `acknowledged`. Raises pydantic.ValidationError for a bad stage file.
    """
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
    services = list(_services(app, stage, network, registry))
    Observability(
        _stack(app, stage, "observability"),
        "Observability",
        stage=stage.name,
        settings=stage.observability,
        services=services,
    )
    if acknowledged:
        acknowledge(app, stage.name)
    return app


def _services(app: App, stage: Stage, network: Network, registry: Registry) -> Iterator[ServerService]:
    def parts(stack: Stack, kind: str) -> ServiceParts:
        name = f"tabpfn-{stage.name}-{kind}"
        return ServiceParts(name, stage.server, stage.observability, network, registry, _image_tag(stack))

    gpu = _stack(app, stage, "gpu-service")
    yield GpuService(gpu, "GpuService", parts=parts(gpu, "gpu"), settings=stage.gpu_service)
    if stage.cpu_service is not None:
        cpu = _stack(app, stage, "cpu-service")
        yield CpuService(cpu, "CpuService", parts=parts(cpu, "cpu"), settings=stage.cpu_service)


def _stack(app: App, stage: Stage, name: str) -> Stack:
    stack = Stack(
        app,
        f"tabpfn-{stage.name}-{name}",  # the CDK derives names from it, such as those of roles: they differ by stage
        stack_name=f"tabpfn-{stage.name}-{name}",
        description=f"tabpfn-serve, stage {stage.name}: {name}",
        synthesizer=BootstraplessSynthesizer(),
    )
    Tags.of(stack).add("project", "tabpfn-serve")
    Tags.of(stack).add("stage", stage.name)
    return stack


def _image_tag(stack: Stack) -> str:
    """A parameter without a default, so that a release is a new value of it and not a new template."""
    parameter = CfnParameter(
        stack,
        "ImageTag",
        type="String",
        allowed_pattern=IMAGE_TAG_PATTERN,
        constraint_description="a version such as 0.1.0 or 0.1.0-4211024, never latest",
        description="Tag of the image in this stage's repository",
    )
    return parameter.value_as_string
