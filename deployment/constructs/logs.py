"""The log of a service. Metrics ride in it too: lines in CloudWatch's embedded metric format."""

from __future__ import annotations

from aws_cdk import RemovalPolicy
from aws_cdk import aws_logs as logs
from constructs import Construct

from deployment.settings import ObservabilitySettings

_RETENTION = {
    7: logs.RetentionDays.ONE_WEEK,
    14: logs.RetentionDays.TWO_WEEKS,
    30: logs.RetentionDays.ONE_MONTH,
    60: logs.RetentionDays.TWO_MONTHS,
    90: logs.RetentionDays.THREE_MONTHS,
    180: logs.RetentionDays.SIX_MONTHS,
    365: logs.RetentionDays.ONE_YEAR,
}


def log_retention(observability: ObservabilitySettings) -> logs.RetentionDays:
    return _RETENTION[observability.log_days]


def service_log_group(scope: Construct, construct_id: str, *, observability: ObservabilitySettings) -> logs.LogGroup:
    return logs.LogGroup(
        scope, construct_id, retention=log_retention(observability), removal_policy=RemovalPolicy.DESTROY
    )
