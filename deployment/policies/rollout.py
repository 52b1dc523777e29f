"""Policies of rollouts: a new version must find room, and a bad one must be rolled back."""

from __future__ import annotations

from collections.abc import Iterator

from deployment.policies.template import Policy, Template, Violation, number, resources, services


def one_gpu_is_replaced_in_place(template: Template) -> Iterator[Violation]:
    """A GPU service of at most one task stops the old task first: a second task would wait for the one GPU forever."""
    for service in services(template):
        if service.uses_gpus and _most_tasks(template) == 1:
            low, high = _percents(service.deployment)
            if low > 0 or high > 100 or service.deployment.get("Strategy", "ROLLING") != "ROLLING":
                yield service.violation("one GPU: use ROLLING, MinimumHealthyPercent 0 and MaximumPercent 100")


def rollouts_can_move(template: Template) -> Iterator[Violation]:
    """ECS may stop an old task or start a new one, and has room for rebalancing where that is on."""
    for service in services(template):
        low, high = _percents(service.deployment)
        if low >= 100 and high <= 100:
            yield service.violation("no task may stop and no other may start, so no version ever replaces another")
        if high <= 100 and service.properties.get("AvailabilityZoneRebalancing") == "ENABLED":
            yield service.violation("rebalancing between zones needs MaximumPercent above 100")


def capacity_holds_a_rollout(template: Template) -> Iterator[Violation]:
    """An Auto Scaling group holds the old and the new tasks together, one GPU instance for each."""
    for service in services(template):
        most = _most_tasks(template)
        for name, group in resources(template, "AWS::AutoScaling::AutoScalingGroup"):
            _, high = _percents(service.deployment)
            size = number(group.get("MaxSize"))
            if service.uses_gpus and most is not None and (size is None or size < most * high / 100):
                yield Violation(name, f"MaxSize {size} does not hold {most:g} tasks at {high:g} percent")


def bad_versions_are_rolled_back(template: Template) -> Iterator[Violation]:
    """Alarms roll a deployment back, and so does the circuit breaker, which exists for rolling deployments only."""
    for service in services(template):
        alarms = service.deployment.get("Alarms", {})
        if not (alarms.get("AlarmNames") and alarms.get("Enable") and alarms.get("Rollback")):
            yield service.violation("no alarm rolls a deployment back")
        rolling = service.deployment.get("Strategy", "ROLLING") == "ROLLING"
        breaker = service.deployment.get("DeploymentCircuitBreaker", {})
        if rolling and not (breaker.get("Enable") and breaker.get("Rollback")):
            yield service.violation("a rolling deployment without a circuit breaker that rolls back")


def _percents(deployment: dict[str, object]) -> tuple[float, float]:
    """(minimum, maximum) percent of healthy tasks, with ECS's defaults."""
    low, high = number(deployment.get("MinimumHealthyPercent")), number(deployment.get("MaximumPercent"))
    return 100 if low is None else low, 200 if high is None else high


def _most_tasks(template: Template) -> float | None:
    targets = resources(template, "AWS::ApplicationAutoScaling::ScalableTarget")
    found = [number(target.get("MaxCapacity")) for _, target in targets]
    return found[0] if found else None


ROLLOUT_POLICIES: tuple[Policy, ...] = (
    one_gpu_is_replaced_in_place,
    rollouts_can_move,
    capacity_holds_a_rollout,
    bad_versions_are_rolled_back,
)
