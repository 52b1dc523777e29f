"""How the policies read a template: resources by type, references between them, tasks and their containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Template = dict[str, Any]
Policy = Callable[[Template], Iterator["Violation"]]


@dataclass(frozen=True, slots=True)
class Violation:
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
    """Of the resource of this template that a `Ref` or `Fn::GetAtt` names; empty where it is none."""
    name = ""
    if isinstance(reference, dict):
        name = reference.get("Ref") or next(iter(reference.get("Fn::GetAtt", [])), "")
    found: dict[str, Any] = template.get("Resources", {}).get(name, {}).get("Properties", {})
    return found


def attributes(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The `Key`/`Value` lists of load balancers and target groups."""
    return {entry["Key"]: entry["Value"] for entry in entries}


def number(value: Any) -> float | None:
    """A number, written as such or as digits; None for what is decided elsewhere, or not said."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Container:
    """A container with the task around it."""

    task_id: str
    task: dict[str, Any]
    properties: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.task_id}/{self.properties.get('Name', '?')}"

    @property
    def on_fargate(self) -> bool:
        return "FARGATE" in self.task.get("RequiresCompatibilities", [])

    @property
    def num_gpus(self) -> float:
        asked = self.properties.get("ResourceRequirements", [])
        return sum(number(entry.get("Value")) or 1 for entry in asked if entry.get("Type") == "GPU")

    @property
    def linux(self) -> dict[str, Any]:
        found: dict[str, Any] = self.properties.get("LinuxParameters", {})
        return found

    @property
    def environment(self) -> dict[str, Any]:
        return {entry["Name"]: entry.get("Value") for entry in self.properties.get("Environment", [])}

    def violation(self, text: str) -> Violation:
        return Violation(self.name, text)


def containers(template: Template) -> Iterator[Container]:
    for task_id, task in resources(template, "AWS::ECS::TaskDefinition"):
        yield from _containers_of(task_id, task)


def _containers_of(task_id: str, task: dict[str, Any]) -> Iterator[Container]:
    for container in task.get("ContainerDefinitions", []):
        yield Container(task_id, task, container)


@dataclass(frozen=True, slots=True)
class Service:
    """An ECS service with the parts of the template that belong to it."""

    id: str
    properties: dict[str, Any]
    containers: tuple[Container, ...]

    @property
    def deployment(self) -> dict[str, Any]:
        found: dict[str, Any] = self.properties.get("DeploymentConfiguration", {})
        return found

    @property
    def uses_gpus(self) -> bool:
        return any(container.num_gpus for container in self.containers)

    def violation(self, text: str) -> Violation:
        return Violation(self.id, text)


def services(template: Template) -> Iterator[Service]:
    for name, found in resources(template, "AWS::ECS::Service"):
        reference = found.get("TaskDefinition")
        task_id = reference.get("Ref", "?") if isinstance(reference, dict) else "?"
        task = properties(template, reference)
        yield Service(name, found, tuple(_containers_of(task_id, task)))
