"""Of tasks and containers: what runs where, as whom, and whether it fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from deployment.instances import InstanceType, instance_types
from deployment.policies.template import Policy, Template, Violation, containers, number, resources

MOST_START_PERIOD_S = 300
"""ECS's own limit."""

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(^|_)(API_?|ACCESS_?|PRIVATE_?)?KEY)(_|$)", re.I)


def no_gpu_on_fargate(template: Template) -> Iterator[Violation]:
    for container in containers(template):
        if container.on_fargate and container.num_gpus:
            yield container.violation("Fargate has no GPU")


def no_shared_memory_on_fargate(template: Template) -> Iterator[Violation]:
    for container in containers(template):
        for setting in ("SharedMemorySize", "Tmpfs"):
            if container.on_fargate and container.linux.get(setting):
                yield container.violation(f"Fargate has no setting {setting}")


def not_root(template: Template) -> Iterator[Violation]:
    for container in containers(template):
        user = str(container.properties.get("User", ""))
        if user.partition(":")[0] in ("", "0", "root"):
            yield container.violation(f"runs as {user or 'the user of the image'}; say a number that is not 0")


def locked_down(template: Template) -> Iterator[Violation]:
    """Read-only root, no privileges, no capabilities, and an init that forwards signals."""
    for container in containers(template):
        if container.properties.get("ReadonlyRootFilesystem") is not True:
            yield container.violation("the root file system can be written to")
        if container.properties.get("Privileged"):
            yield container.violation("is privileged")
        if container.linux.get("Capabilities", {}).get("Drop") != ["ALL"]:
            yield container.violation("keeps capabilities")
        if container.linux.get("InitProcessEnabled") is not True:
            yield container.violation("has no init process")


def writable_tmp_can_execute(template: Template) -> Iterator[Violation]:
    """Ray is given HAProxy by a script in /tmp; a tmpfs forbids that unless told otherwise."""
    for container in containers(template):
        for tmpfs in container.linux.get("Tmpfs", []):
            if tmpfs.get("ContainerPath") == "/tmp" and "exec" not in tmpfs.get("MountOptions", []):
                yield container.violation("/tmp is a tmpfs without `exec`")


def no_secrets_in_environment(template: Template) -> Iterator[Violation]:
    for container in containers(template):
        for name in container.environment:
            if _SECRET_NAME.search(name):
                yield container.violation(f"{name} stands in the environment; give it by Secrets")


def images_are_pinned(template: Template) -> Iterator[Violation]:
    """A digest, a tag that is not `latest`, or a parameter that refuses `latest`."""
    for container in containers(template):
        image = container.properties.get("Image")
        tag = _tag(image)
        if isinstance(tag, str):
            if tag in ("", "latest"):
                yield container.violation("the image has no tag, or `latest`")
        elif not _refuses_latest(template, tag):
            yield container.violation("the image's tag may be `latest`: its parameter needs an AllowedPattern")


def _tag(image: Any) -> Any:
    """The text after the colon, or the reference that stands there."""
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
    for name, repository in resources(template, "AWS::ECR::Repository"):
        if repository.get("ImageTagMutability") != "IMMUTABLE":
            yield Violation(name, "a tag of this repository can be moved to another image")


def health_is_asked(template: Template) -> Iterator[Violation]:
    for container in containers(template):
        check = container.properties.get("HealthCheck")
        if check is None or "/v2/health/ready" not in " ".join(map(str, check.get("Command", []))):
            yield container.violation("no health check asks /v2/health/ready")
        elif (number(check.get("StartPeriod")) or 0) > MOST_START_PERIOD_S:
            yield container.violation(f"StartPeriod is above {MOST_START_PERIOD_S} s")


def tasks_fit_their_instances(template: Template) -> Iterator[Violation]:
    """A GPU task must fit the smallest instance type that its capacity may choose, beside what the host needs."""
    names = list(_allowed_types(template))
    for name in names:
        if name not in instance_types():
            yield Violation("capacity", f"{name} is not in instance_types.yaml, so nobody knows what fits on it")
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
            yield f"does not say its {unit}"
        elif wanted > there:
            yield f"asks for {wanted:g} {unit}, an instance with {row.vcpus} vCPUs, {row.memory_gib} GiB has {there}"


def shared_memory_fits(template: Template) -> Iterator[Violation]:
    """/dev/shm is part of the container's memory, and the server needs the greater part."""
    for container in containers(template):
        shm, memory = number(container.linux.get("SharedMemorySize")), number(container.properties.get("Memory"))
        if shm is not None and (memory is None or shm > memory / 2):
            yield container.violation(f"{shm:g} MiB of shared memory are more than half of the container's memory")


CONTAINER_POLICIES: tuple[Policy, ...] = (
    no_gpu_on_fargate,
    no_shared_memory_on_fargate,
    not_root,
    locked_down,
    writable_tmp_can_execute,
    no_secrets_in_environment,
    images_are_pinned,
    repositories_are_immutable,
    health_is_asked,
    tasks_fit_their_instances,
    shared_memory_fits,
)
