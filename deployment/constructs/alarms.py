"""The alarms on one service: those that roll a deployment back, and those that notify people."""

from __future__ import annotations

from aws_cdk import aws_cloudwatch as cloudwatch
from constructs import Construct

from deployment.constructs.service_metrics import ServiceMetrics
from deployment.settings import ObservabilitySettings

_ROLLBACK_5XX_PERCENT = 5.0
_ROLLBACK_P99_S = 5.0
_ROLLBACK_TEXT = "ECS rolls a deployment back on this"


def rollback_alarms(scope: Construct, *, metrics: ServiceMetrics) -> list[cloudwatch.Alarm]:
    """The alarms on which ECS rolls a deployment back.

    They belong to the service's own stack, because ECS reads them while it deploys. Their names are fixed, because ECS
    is given the names.
    """
    name, errors, p99 = metrics.name, metrics.error_percent, metrics.p99_seconds
    return [
        _alarm(scope, "RollBackOnErrors", f"{name}-rollback-5xx", errors, _ROLLBACK_5XX_PERCENT, 2, _ROLLBACK_TEXT),
        _alarm(scope, "RollBackOnLatency", f"{name}-rollback-p99", p99, _ROLLBACK_P99_S, 3, _ROLLBACK_TEXT),
    ]


def notifying_alarms(
    scope: Construct, *, metrics: ServiceMetrics, limits: ObservabilitySettings, expects_data: bool
) -> list[cloudwatch.Alarm]:
    """The alarms that the stage's topic sends to people.

    `expects_data` is for a service that never has zero tasks: then missing metrics are an alarm too, since a service
    that scales on its own metrics stops scaling when it reports none.
    """

    def alarm(name: str, metric: cloudwatch.IMetric, threshold: float, periods: int, text: str) -> cloudwatch.Alarm:
        full_name = f"{metrics.name}-{name}"
        return _alarm(scope, full_name, full_name, metric, threshold, periods, text)

    alarms = [
        alarm("p99", metrics.p99_seconds, limits.p99_ms / 1e3, 5, "Answers are slow: see OngoingRequests, QueuedRows"),
        alarm("5xx", metrics.error_percent, limits.error_percent, 3, "Requests fail with a status of 5xx"),
        alarm("refused", metrics.refused_percent, limits.refused_percent, 5, "Overload: requests are refused"),
    ]
    for number, metric in enumerate(metrics.unhealthy(), start=1):
        alarms.append(alarm(f"unhealthy-{number}", metric, 0, 5, "A task was not ready for five minutes"))
    if expects_data:
        alarms.append(_no_data(scope, metrics))
    return alarms


def _no_data(scope: Construct, metrics: ServiceMetrics) -> cloudwatch.Alarm:
    return cloudwatch.Alarm(
        scope,
        f"{metrics.name}-no-data",
        alarm_name=f"{metrics.name}-no-data",
        alarm_description="No replica reports its metrics, so the service does not scale",
        metric=metrics.reported("OngoingRequests", "SampleCount"),
        threshold=1,
        comparison_operator=cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
        evaluation_periods=5,
        treat_missing_data=cloudwatch.TreatMissingData.BREACHING,
    )


def _alarm(
    scope: Construct,
    construct_id: str,
    name: str,
    metric: cloudwatch.IMetric,
    threshold: float,
    periods: int,
    text: str,
) -> cloudwatch.Alarm:
    """An alarm on values above the threshold in `periods` minutes in a row; missing values are no alarm."""
    return cloudwatch.Alarm(
        scope,
        construct_id,
        alarm_name=name,
        alarm_description=text,
        metric=metric,
        threshold=threshold,
        comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
        evaluation_periods=periods,
        treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
    )
