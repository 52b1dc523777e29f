"""Policies of time limits: server, container and load balancer must give up in the right order.

longest request   <= drain of the server         or a stop fails requests that it admitted
longest request   <= deregistration delay        or the load balancer cuts a request off when its task leaves
longest request   <  idle timeout of the ALB     or the load balancer cuts a request off while it waits
ALB idle timeout  <  keep-alive of the server    or a request meets a connection that is just being closed (502)
lame duck + grace + drain + margin <= stop timeout, or SIGKILL ends the drain
"""

from __future__ import annotations

from collections.abc import Iterator

from deployment.policies.template import (
    Container,
    Policy,
    Service,
    Template,
    Violation,
    attributes,
    containers,
    number,
    properties,
    resources,
    services,
)
from deployment.settings import GRACE_S, MAX_FARGATE_STOP_S, STOP_MARGIN_S

_LAME_DUCK = "TABPFN_SERVE_API_LAME_DUCK_S"
_DRAIN = "TABPFN_SERVE_API_DRAIN_TIMEOUT_S"
_DEADLINE = "TABPFN_SERVE_BATCHING_DEFAULT_TIMEOUT_MS"
_KEEP_ALIVE = "TABPFN_SERVE_API_KEEP_ALIVE_S"


def stop_waits_for_the_drain(template: Template) -> Iterator[Violation]:
    """The stop timeout of a container covers lame duck, grace, drain and margin, and the template states all of them.

    A lame duck that only the image sets could change with the image.
    """
    for container in containers(template):
        lame_duck, drain = (number(container.environment.get(name)) for name in (_LAME_DUCK, _DRAIN))
        stop = number(container.properties.get("StopTimeout"))
        if lame_duck is None or drain is None or stop is None:
            yield container.violation(f"set {_LAME_DUCK}, {_DRAIN} and StopTimeout")
        elif (needed := lame_duck + GRACE_S + drain + STOP_MARGIN_S) > stop:
            yield container.violation(
                f"StopTimeout is {stop:g} s; lame duck {lame_duck:g} s and drain {drain:g} s need {needed:g} s"
            )


def fargate_stops_in_two_minutes(template: Template) -> Iterator[Violation]:
    """The stop timeout is one that Fargate accepts. cfn-lint does not know the limit."""
    for container in containers(template):
        stop = number(container.properties.get("StopTimeout"))
        if container.on_fargate and stop is not None and stop > MAX_FARGATE_STOP_S:
            yield container.violation(f"StopTimeout is {stop:g} s; Fargate allows {MAX_FARGATE_STOP_S} s")


def drain_answers_the_longest(template: Template) -> Iterator[Violation]:
    """The drain is as long as the longest request, so that a stop answers everything that was admitted."""
    for container in containers(template):
        drain, longest = number(container.environment.get(_DRAIN)), _longest_request_s(container)
        if drain is None or longest is None:
            yield container.violation(f"set both {_DRAIN} and {_DEADLINE}")
        elif longest > drain:
            yield container.violation(f"a request may take {longest:g} s, but the drain ends after {drain:g} s")


def deregistration_waits_for_the_longest(template: Template) -> Iterator[Violation]:
    """The load balancer lets the longest request finish after its task was deregistered."""
    for service in services(template):
        for container in _behind_a_load_balancer(service):
            longest = _longest_request_s(container) or 0
            for name, group in resources(template, "AWS::ElasticLoadBalancingV2::TargetGroup"):
                key = "deregistration_delay.timeout_seconds"
                delay = number(attributes(group.get("TargetGroupAttributes", [])).get(key))
                if delay is None or delay < longest:
                    yield Violation(name, f"deregistration delay is {delay}, a request may take {longest:g} s")


def idle_timeouts_are_in_order(template: Template) -> Iterator[Violation]:
    """The load balancer's idle timeout is above the longest request and below the keep-alive of the server."""
    for service in services(template):
        for container in _behind_a_load_balancer(service):
            longest, keep_alive = _longest_request_s(container) or 0, number(container.environment.get(_KEEP_ALIVE))
            for name, balancer in resources(template, "AWS::ElasticLoadBalancingV2::LoadBalancer"):
                given = attributes(balancer.get("LoadBalancerAttributes", [])).get("idle_timeout.timeout_seconds")
                idle = number(given)
                if idle is None or idle <= longest:
                    yield Violation(name, f"idle timeout is {idle}, a request may take {longest:g} s")
                elif keep_alive is None or keep_alive <= idle:
                    yield container.violation(f"keep-alive {keep_alive} is not above the ALB's idle timeout {idle:g} s")


def _longest_request_s(container: Container) -> float | None:
    """The default deadline in seconds. A caller may ask for more by `x-request-timeout-ms`, without a promise."""
    deadline_ms = number(container.environment.get(_DEADLINE))
    return None if deadline_ms is None else deadline_ms / 1e3


def _behind_a_load_balancer(service: Service) -> Iterator[Container]:
    names = {entry.get("ContainerName") for entry in service.properties.get("LoadBalancers", [])}
    for container in service.containers:
        if container.properties.get("Name") in names:
            yield container


def starts_are_waited_for(template: Template) -> Iterator[Violation]:
    """A service has a grace period; without one a failed health check ends a task that still loads its model."""
    for service in services(template):
        if not number(service.properties.get("HealthCheckGracePeriodSeconds")):
            yield service.violation("no HealthCheckGracePeriodSeconds")


def health_checks_are_readiness(template: Template) -> Iterator[Violation]:
    """Load balancers ask for readiness, and their target groups are in the template, so that times can be compared."""
    for name, group in resources(template, "AWS::ElasticLoadBalancingV2::TargetGroup"):
        if group.get("HealthCheckPath") != "/v2/health/ready":
            yield Violation(name, "the load balancer does not ask /v2/health/ready")
    for service in services(template):
        for entry in service.properties.get("LoadBalancers", []):
            if "TargetGroupArn" in entry and not properties(template, entry["TargetGroupArn"]):
                yield service.violation("its target group is not in this template, so its times cannot be compared")


TIMING_POLICIES: tuple[Policy, ...] = (
    stop_waits_for_the_drain,
    fargate_stops_in_two_minutes,
    drain_answers_the_longest,
    deregistration_waits_for_the_longest,
    idle_timeouts_are_in_order,
    starts_are_waited_for,
    health_checks_are_readiness,
)
