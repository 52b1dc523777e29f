"""Of rollouts: a new version must find room, and a bad one must be taken back."""

from __future__ import annotations

from collections.abc import Iterator

from deployment.policies.template import Policy, Template, Violation, number, resources, services


def one_gpu_is_replaced_in_place(template: Template) -> Iterator[Violation]:
    """Where there may be one task only there is one GPU only, and a second task would wait for it forever."""
    for service in services(template):
        if service.uses_gpus and _most_tasks(template) == 1:
            low, high = _percents(service.deployment)
            if low > 0 or high > 100 or service.deployment.get("Strategy", "ROLLING") != "ROLLING":
                yield service.violation("one GPU: rolling, MinimumHealthyPercent 0 and MaximumPercent 100")


def rollouts_can_move(template: Template) -> Iterator[Violation]:
    for service in services(template):
        low, high = _percents(service.deployment)
        if low >= 100 and high <= 100:
            yield service.violation("neither may a task stop nor another start: no version ever replaces another")
        if high <= 100 and service.properties.get("AvailabilityZoneRebalancing") == "ENABLED":
            yield service.violation("rebalancing between zones needs MaximumPercent above 100")


def capacity_holds_a_rollout(template: Template) -> Iterator[Violation]:
    """One GPU per task: an Auto Scaling group must be able to hold old and new tasks together."""
    for service in services(template):
        most = _most_tasks(template)
        for name, group in resources(template, "AWS::AutoScaling::AutoScalingGroup"):
            _, high = _percents(service.deployment)
            size = number(group.get("MaxSize"))
            if service.uses_gpus and most is not None and (size is None or size < most * high / 100):
                yield Violation(name, f"MaxSize {size} does not hold {most:g} tasks at {high:g} percent")


def bad_versions_are_taken_back(template: Template) -> Iterator[Violation]:
    """By alarms, and by the circuit breaker where the rollout is rolling (it knows no other)."""
    for service in services(template):
        alarms = service.deployment.get("Alarms", {})
        if not (alarms.get("AlarmNames") and alarms.get("Enable") and alarms.get("Rollback")):
            yield service.violation("no alarm rolls a deployment back")
        rolling = service.deployment.get("Strategy", "ROLLING") == "ROLLING"
        breaker = service.deployment.get("DeploymentCircuitBreaker", {})
        if rolling and not (breaker.get("Enable") and breaker.get("Rollback")):
            yield service.violation("a rolling deployment without a circuit breaker that rolls back")


def _percents(deployment: dict[str, object]) -> tuple[float, float]:
    """(minimum, maximum), with ECS's defaults."""
    low, high = number(deployment.get("MinimumHealthyPercent")), number(deployment.get("MaximumPercent"))
    return 100 if low is None else low, 200 if high is None else high


def _most_tasks(template: Template) -> float | None:
    found = [number(target.get("MaxCapacity")) for _, target in scalable_targets(template)]
    return found[0] if found else None


def scalable_targets(template: Template) -> Iterator[tuple[str, dict[str, object]]]:
    yield from resources(template, "AWS::ApplicationAutoScaling::ScalableTarget")


ROLLOUT_POLICIES: tuple[Policy, ...] = (
    one_gpu_is_replaced_in_place,
    rollouts_can_move,
    capacity_holds_a_rollout,
    bad_versions_are_taken_back,
)
