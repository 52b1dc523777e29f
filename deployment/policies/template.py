"""How the policies read a template: resources by type, references between them, tasks and their containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Template = dict[str, Any]
Policy = Callable[[Template], Iterator["Violation"]]


@dataclass(frozen=True, slots=True)
class Violation:
    """A fault: the resource that has it, and the text that says what is wrong."""

    resource: str
    text: str

    def __str__(self) -> str:
        return f"{self.resource}: {self.text}"


def resources(template: Template, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(logical id, properties) of every resource of a type."""
    for name, resource in template.get("Resources", {}).items():
        if resource["Type"] == kind:
            yield name, resource.get("Properties", {})


def properties(template: Template, reference: Any) -> dict[str, Any]:
    """The properties of the resource that a `Ref` or `Fn::GetAtt` names; empty if it is not in this template."""
    name = ""
    if isinstance(reference, dict):
        name = reference.get("Ref") or next(iter(reference.get("Fn::GetAtt", [])), "")
    found: dict[str, Any] = template.get("Resources", {}).get(name, {}).get("Properties", {})
    return found


def attributes(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A list of `Key` and `Value`, as load balancers and target groups have it, as a dictionary."""
    return {entry["Key"]: entry["Value"] for entry in entries}


def number(value: Any) -> float | None:
    """A number, written as such or as digits. None for a missing value or a reference."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Container:
    """A container definition with the task definition around it."""

    task_id: str
    task: dict[str, Any]
    properties: dict[str, Any]

    @property
    def name(self) -> str:
        """Task and container, as violations name them."""
        return f"{self.task_id}/{self.properties.get('Name', '?')}"

    @property
    def on_fargate(self) -> bool:
        """Whether the task may be placed on Fargate."""
        return "FARGATE" in self.task.get("RequiresCompatibilities", [])

    @property
    def num_gpus(self) -> float:
        """GPUs that the container asks for."""
        asked = self.properties.get("ResourceRequirements", [])
        return sum(number(entry.get("Value")) or 1 for entry in asked if entry.get("Type") == "GPU")

    @property
    def linux(self) -> dict[str, Any]:
        """Its LinuxParameters; empty if there are none."""
        found: dict[str, Any] = self.properties.get("LinuxParameters", {})
        return found

    @property
    def environment(self) -> dict[str, Any]:
        """Its variables by name. A value may be a reference."""
        return {entry["Name"]: entry.get("Value") for entry in self.properties.get("Environment", [])}

    def violation(self, text: str) -> Violation:
        """A violation of this container."""
        return Violation(self.name, text)


def containers(template: Template) -> Iterator[Container]:
    """Every container of every task definition."""
    for task_id, task in resources(template, "AWS::ECS::TaskDefinition"):
        yield from _containers_of(task_id, task)


def _containers_of(task_id: str, task: dict[str, Any]) -> Iterator[Container]:
    for container in task.get("ContainerDefinitions", []):
        yield Container(task_id, task, container)


@dataclass(frozen=True, slots=True)
class Service:
    """An ECS service with its containers."""

    id: str
    properties: dict[str, Any]
    containers: tuple[Container, ...]

    @property
    def deployment(self) -> dict[str, Any]:
        """Its DeploymentConfiguration; empty if there is none."""
        found: dict[str, Any] = self.properties.get("DeploymentConfiguration", {})
        return found

    @property
    def uses_gpus(self) -> bool:
        """Whether any of its containers asks for a GPU."""
        return any(container.num_gpus for container in self.containers)

    def violation(self, text: str) -> Violation:
        """A violation of this service."""
        return Violation(self.id, text)


def services(template: Template) -> Iterator[Service]:
    """Every ECS service, with the containers of its task definition if that is in the template."""
    for name, found in resources(template, "AWS::ECS::Service"):
        reference = found.get("TaskDefinition")
        task_id = reference.get("Ref", "?") if isinstance(reference, dict) else "?"
        task = properties(template, reference)
        yield Service(name, found, tuple(_containers_of(task_id, task)))
