"""Policies of tasks and containers: on which hosts they can run, as which user, and whether they fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from deployment.instances import InstanceType, instance_types
from deployment.policies.template import Policy, Template, Violation, containers, number, resources

MAX_START_PERIOD_S = 300
"""The limit of ECS."""

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(^|_)(API_?|ACCESS_?|PRIVATE_?)?KEY)(_|$)", re.I)


def fargate_can_run_it(template: Template) -> Iterator[Violation]:
    """A task on Fargate asks for no GPU and sets no shared memory and no tmpfs, which exist on EC2 only."""
    for container in containers(template):
        if container.on_fargate and container.num_gpus:
            yield container.violation("Fargate has no GPU")
        for setting in ("SharedMemorySize", "Tmpfs"):
            if container.on_fargate and container.linux.get(setting):
                yield container.violation(f"Fargate has no setting {setting}")


def not_root(template: Template) -> Iterator[Violation]:
    """A container names its user by a number that is not 0. The image's own user is not in the template."""
    for container in containers(template):
        user = str(container.properties.get("User", ""))
        if user.partition(":")[0] in ("", "0", "root"):
            yield container.violation(f"runs as {user or 'the user of the image'}; set User to a number that is not 0")


def locked_down(template: Template) -> Iterator[Violation]:
    """A container has a read-only root, no privileges, no capabilities, and an init process that forwards signals."""
    for container in containers(template):
        if container.properties.get("ReadonlyRootFilesystem") is not True:
            yield container.violation("the root file system can be written to; set ReadonlyRootFilesystem")
        if container.properties.get("Privileged"):
            yield container.violation("is privileged")
        if container.linux.get("Capabilities", {}).get("Drop") != ["ALL"]:
            yield container.violation("keeps capabilities")
        if container.linux.get("InitProcessEnabled") is not True:
            yield container.violation("has no init process")


def no_secrets_in_environment(template: Template) -> Iterator[Violation]:
    """No variable is named like a secret. cdk-nag can only refuse all variables, and settings are variables."""
    for container in containers(template):
        for name in container.environment:
            if _SECRET_NAME.search(name):
                yield container.violation(f"{name} is in Environment, where anyone can read it; move it to Secrets")


def images_are_pinned(template: Template) -> Iterator[Violation]:
    """An image has a digest, a tag that is not `latest`, or a tag from a parameter that refuses `latest`."""
    for container in containers(template):
        image = container.properties.get("Image")
        tag = _tag(image)
        if isinstance(tag, str):
            if tag in ("", "latest"):
                yield container.violation("the image has no tag, or `latest`")
        elif not _refuses_latest(template, tag):
            yield container.violation("the image's tag may be `latest`: its parameter needs an AllowedPattern")


def _tag(image: Any) -> Any:
    """The text after the colon, or the reference in its place."""
    if isinstance(image, dict) and "Fn::Join" in image:
        last = image["Fn::Join"][1][-1]
        return last if isinstance(last, dict) else _tag(last)
    name = str(image).rpartition("/")[2]
    return name.partition("@")[2] or name.partition(":")[2]


def _refuses_latest(template: Template, tag: dict[str, Any]) -> bool:
    parameter = template.get("Parameters", {}).get(tag.get("Ref", ""), {})
    pattern = parameter.get("AllowedPattern")
    return bool(pattern) and re.fullmatch(pattern, "latest") is None and parameter.get("Default", "") != "latest"


def repositories_are_immutable(template: Template) -> Iterator[Violation]:
    """A repository takes each tag once, so that a tag always names the same image."""
    for name, repository in resources(template, "AWS::ECR::Repository"):
        if repository.get("ImageTagMutability") != "IMMUTABLE":
            yield Violation(name, "a tag of this repository can be moved to another image")


def health_is_checked(template: Template) -> Iterator[Violation]:
    """A container has a health check that asks for readiness, with a start period that ECS accepts."""
    for container in containers(template):
        check = container.properties.get("HealthCheck")
        if check is None or "/v2/health/ready" not in " ".join(map(str, check.get("Command", []))):
            yield container.violation("no health check asks /v2/health/ready")
        elif (number(check.get("StartPeriod")) or 0) > MAX_START_PERIOD_S:
            yield container.violation(f"StartPeriod is above {MAX_START_PERIOD_S} s")


def tasks_fit_their_instances(template: Template) -> Iterator[Violation]:
    """A GPU task fits every instance type that its capacity may choose, with room for what the host needs."""
    names = list(_allowed_types(template))
    for name in names:
        if name not in instance_types():
            yield Violation("capacity", f"{name} is not in instance_types.yaml; add its size there")
    rows = [instance_types()[name] for name in names if name in instance_types()]
    for container in containers(template):
        if container.num_gpus and not rows:
            yield container.violation("needs a GPU, and the template allows no instance type that has one")
        for row in rows if container.num_gpus else ():
            for text in _too_large(container.task, container.num_gpus, row):
                yield container.violation(text)


def _allowed_types(template: Template) -> Iterator[str]:
    for _, provider in resources(template, "AWS::ECS::CapacityProvider"):
        managed = provider.get("ManagedInstancesProvider", {}).get("InstanceLaunchTemplate", {})
        yield from managed.get("InstanceRequirements", {}).get("AllowedInstanceTypes", [])
    for _, group in resources(template, "AWS::AutoScaling::AutoScalingGroup"):
        for override in group.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {}).get("Overrides", []):
            yield override["InstanceType"]
    for _, launch in resources(template, "AWS::EC2::LaunchTemplate"):
        if given := launch.get("LaunchTemplateData", {}).get("InstanceType"):
            yield given


def _too_large(task: dict[str, Any], num_gpus: float, row: InstanceType) -> Iterator[str]:
    asked = {
        "GPUs": (num_gpus, row.gpus),
        "CPU units": (number(task.get("Cpu")), row.cpu_units_for_tasks),
        "MiB": (number(task.get("Memory")), row.memory_mib_for_tasks),
    }
    for unit, (wanted, there) in asked.items():
        if wanted is None:
            yield f"does not state its {unit}"
        elif wanted > there:
            yield f"asks for {wanted:g} {unit}; an instance with {row.vcpus} vCPUs, {row.memory_gib} GiB has {there}"


def shared_memory_fits(template: Template) -> Iterator[Violation]:
    """/dev/shm is at most half of the container's memory, because the server needs the rest."""
    for container in containers(template):
        shm, memory = number(container.linux.get("SharedMemorySize")), number(container.properties.get("Memory"))
        if shm is not None and (memory is None or shm > memory / 2):
            yield container.violation(f"{shm:g} MiB of shared memory are more than half of the container's memory")


CONTAINER_POLICIES: tuple[Policy, ...] = (
    fargate_can_run_it,
    not_root,
    locked_down,
    no_secrets_in_environment,
    images_are_pinned,
    repositories_are_immutable,
    health_is_checked,
    tasks_fit_their_instances,
    shared_memory_fits,
)
