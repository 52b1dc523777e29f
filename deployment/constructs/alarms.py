"""What CloudWatch can know of one service, as metrics, and the alarms on them.

Two kinds of numbers: the load balancer's, counted outside the server, and the server's own, which its log carries
(`serve/emf.py`). The alarms of a rollback use the first kind alone, so that a server which says nothing of itself
cannot be rolled out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_logs as logs
from constructs import Construct

from deployment.constructs.load_balancer import LoadBalancer
from deployment.settings import METRIC_NAMESPACE, ObservabilitySettings

_MINUTE = Duration.minutes(1)
_NOT_BREACHING = cloudwatch.TreatMissingData.NOT_BREACHING
_ABOVE = cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD
_BELOW = cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD

_ROLLBACK_5XX_PERCENT = 5.0
_FEWEST_REQUESTS = 20
"""Fewer in a minute say nothing about a percentage."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service from outside: its name and its metrics."""

    name: str
    balancer: LoadBalancer
    log_group: logs.ILogGroup
    cluster: ecs.ICluster
    has_gpu: bool
    service: ecs.BaseService | None = None

    def with_service(self, service: ecs.BaseService) -> ServiceView:
        return replace(self, service=service)

    def own(self, metric: str, statistic: str) -> cloudwatch.Metric:
        """A number that the server reports."""
        return cloudwatch.Metric(
            namespace=METRIC_NAMESPACE,
            metric_name=metric,
            dimensions_map={"Service": self.name},
            statistic=statistic,
            period=_MINUTE,
        )

    @property
    def requests(self) -> cloudwatch.Metric:
        return self.balancer.alb.metrics.request_count(statistic="Sum", period=_MINUTE)

    @property
    def errors(self) -> cloudwatch.Metric:
        """Of the server. 504 of a deadline and 503 of a drain are among them."""
        return self.balancer.alb.metrics.http_code_target(
            elb.HttpCodeTarget.TARGET_5XX_COUNT, statistic="Sum", period=_MINUTE
        )

    @property
    def balancer_errors(self) -> cloudwatch.Metric:
        """Of the load balancer: nobody there, connection lost, too late."""
        return self.balancer.alb.metrics.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, statistic="Sum", period=_MINUTE)

    @property
    def p99_seconds(self) -> cloudwatch.Metric:
        return self.balancer.alb.metrics.target_response_time(statistic="p99", period=_MINUTE)

    @property
    def error_percent(self) -> cloudwatch.MathExpression:
        return cloudwatch.MathExpression(
            expression=f"IF(requests >= {_FEWEST_REQUESTS}, 100 * (FILL(ours, 0) + FILL(alb, 0)) / requests, 0)",
            using_metrics={"ours": self.errors, "alb": self.balancer_errors, "requests": self.requests},
            label="5xx, percent of requests",
            period=_MINUTE,
        )

    @property
    def refused_percent(self) -> cloudwatch.MathExpression:
        return cloudwatch.MathExpression(
            expression=f"IF(all >= {_FEWEST_REQUESTS}, 100 * refused / all, 0)",
            using_metrics={"refused": self.own("RefusedRequests", "Sum"), "all": self.own("Requests", "Sum")},
            label="refused (429), percent of requests",
            period=_MINUTE,
        )

    def unhealthy(self) -> Sequence[cloudwatch.Metric]:
        return [
            group.metrics.unhealthy_host_count(statistic="Maximum", period=_MINUTE)
            for group in self.balancer.target_groups
        ]

    def healthy(self) -> Sequence[cloudwatch.Metric]:
        return [
            group.metrics.healthy_host_count(statistic="Minimum", period=_MINUTE)
            for group in self.balancer.target_groups
        ]


def rollback_alarms(scope: Construct, *, view: ServiceView) -> list[cloudwatch.Alarm]:
    """They stand in the stack of the service, since ECS watches them while it deploys; their names are fixed."""
    errors = cloudwatch.Alarm(
        scope,
        "RollBackOnErrors",
        alarm_name=f"{view.name}-rollback-5xx",
        alarm_description="ECS rolls a deployment back on this",
        metric=view.error_percent,
        threshold=_ROLLBACK_5XX_PERCENT,
        comparison_operator=_ABOVE,
        evaluation_periods=2,
        treat_missing_data=_NOT_BREACHING,
    )
    latency = cloudwatch.Alarm(
        scope,
        "RollBackOnLatency",
        alarm_name=f"{view.name}-rollback-p99",
        alarm_description="ECS rolls a deployment back on this",
        metric=view.p99_seconds,
        threshold=5.0,
        comparison_operator=_ABOVE,
        evaluation_periods=3,
        treat_missing_data=_NOT_BREACHING,
    )
    return [errors, latency]


def watch(
    scope: Construct, *, view: ServiceView, limits: ObservabilitySettings, expects_data: bool
) -> list[cloudwatch.Alarm]:
    """The alarms that a person hears of. `expects_data`: the service never has zero tasks."""

    def alarm(name: str, metric: cloudwatch.IMetric, threshold: float, periods: int, text: str) -> cloudwatch.Alarm:
        return cloudwatch.Alarm(
            scope,
            f"{view.name}-{name}",
            alarm_name=f"{view.name}-{name}",
            alarm_description=text,
            metric=metric,
            threshold=threshold,
            comparison_operator=_ABOVE,
            evaluation_periods=periods,
            treat_missing_data=_NOT_BREACHING,
        )

    alarms = [
        alarm("p99", view.p99_seconds, limits.p99_ms / 1e3, 5, "Answers are slow: see OngoingRequests, QueuedRows"),
        alarm("5xx", view.error_percent, limits.error_percent, 3, "The service fails its callers"),
        alarm(
            "refused", view.refused_percent, limits.refused_percent, 5, "Overloaded: more tasks, or max_tasks is low"
        ),
    ]
    for number, metric in enumerate(view.unhealthy(), start=1):
        alarms.append(alarm(f"unhealthy-{number}", metric, 0, 5, "A task is not ready for five minutes"))
    if expects_data:
        alarms.append(_no_data(scope, view))
    return alarms


def _no_data(scope: Construct, view: ServiceView) -> cloudwatch.Alarm:
    """A service that scales on its own metric must be heard when it falls silent."""
    return cloudwatch.Alarm(
        scope,
        f"{view.name}-no-data",
        alarm_name=f"{view.name}-no-data",
        alarm_description="No replica reports its metrics, so nothing scales",
        metric=view.own("OngoingRequests", "SampleCount"),
        threshold=1,
        comparison_operator=_BELOW,
        evaluation_periods=5,
        treat_missing_data=cloudwatch.TreatMissingData.BREACHING,
    )
