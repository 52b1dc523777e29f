"""The log group of a service. It also carries the metrics, as lines in CloudWatch's embedded metric format."""

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
    """The CDK's name for the stage's `log_days`; every log of a stage is kept equally long."""
    return _RETENTION[observability.log_days]


def service_log_group(scope: Construct, construct_id: str, *, observability: ObservabilitySettings) -> logs.LogGroup:
    """A log group that is deleted with its stack, so that no log outlives the service without an owner."""
    return logs.LogGroup(
        scope, construct_id, retention=log_retention(observability), removal_policy=RemovalPolicy.DESTROY
    )
