"""What people watch a stage by: one topic with alarms and failed deployments, and one dashboard."""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import Aws, aws_cloudwatch_actions
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from deployment.constructs.alarms import notifying_alarms
from deployment.constructs.service import ServerService
from deployment.constructs.service_metrics import ServiceMetrics
from deployment.settings import ObservabilitySettings


class Observability(Construct):
    """The topic, the alarms, the dashboard and the rule for failed deployments of all services of a stage."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        stage: str,
        settings: ObservabilitySettings,
        services: Sequence[ServerService],
    ) -> None:
        super().__init__(scope, construct_id)
        self.topic = self._topic(stage, settings.email)
        action = aws_cloudwatch_actions.SnsAction(self.topic)
        dashboard = cloudwatch.Dashboard(self, "Dashboard", dashboard_name=f"tabpfn-{stage}")
        for service in services:
            alarms = notifying_alarms(self, metrics=service.metrics, limits=settings, expects_data=service.always_on)
            for alarm in alarms:
                alarm.add_alarm_action(action)
                alarm.add_ok_action(action)
            dashboard.add_widgets(*_widgets(service.metrics, alarms))
        self._report_failed_deployments(services)

    def _topic(self, stage: str, email: str | None) -> sns.Topic:
        key = kms.Key(self, "Key", enable_key_rotation=True, description=f"tabpfn-serve {stage}: alarms")
        own_account = {"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}}
        # EventBridge supports no conditions in a topic's policy, so the key's policy has none for it either.
        for publisher, conditions in (("cloudwatch.amazonaws.com", own_account), ("events.amazonaws.com", {})):
            key.add_to_resource_policy(
                iam.PolicyStatement(
                    actions=["kms:GenerateDataKey", "kms:Decrypt"],
                    principals=[iam.ServicePrincipal(publisher)],
                    resources=["*"],  # in a key's own policy this means the key itself
                    conditions=conditions,
                )
            )
        topic = sns.Topic(self, "Topic", master_key=key, enforce_ssl=True, display_name=f"tabpfn-serve {stage}")
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                actions=["sns:Publish"],
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                resources=[topic.topic_arn],
                conditions=own_account,
            )
        )
        if email:
            topic.add_subscription(subscriptions.EmailSubscription(email))
        return topic

    def _report_failed_deployments(self, services: Sequence[ServerService]) -> None:
        rule = events.Rule(
            self,
            "FailedDeployments",
            description="A deployment failed or was rolled back",
            event_pattern=events.EventPattern(
                source=["aws.ecs"],
                detail_type=["ECS Deployment State Change"],
                detail={"eventName": ["SERVICE_DEPLOYMENT_FAILED"]},
                resources=[service.service.service_arn for service in services],
            ),
        )
        rule.add_target(targets.SnsTopic(self.topic))


def _widgets(metrics: ServiceMetrics, alarms: Sequence[cloudwatch.Alarm]) -> list[cloudwatch.IWidget]:
    reported = metrics.reported
    p50, p99 = reported("RequestP50", "Average"), reported("RequestP99", "Maximum")
    widgets: list[cloudwatch.IWidget] = [
        cloudwatch.TextWidget(markdown=f"# {metrics.name}", width=24, height=1),
        cloudwatch.AlarmStatusWidget(alarms=list(alarms), width=24, height=3),
        _graph("Requests and errors", [metrics.requests], [metrics.errors, metrics.balancer_errors]),
        _graph("p99 at the load balancer; p50 and p99 of the slowest replica", [metrics.p99_seconds, p50, p99]),
        _graph("Healthy and unhealthy tasks", [*metrics.healthy(), *metrics.unhealthy()]),
        _graph(
            "Requests queued and in flight per replica (scaling follows this); rows queued",
            [reported("OngoingRequests", "Average"), reported("OngoingRequests", "Maximum")],
            [reported("QueuedRows", "Average")],
        ),
        _graph(
            "Requests refused and expired", [reported("RefusedRequests", "Sum"), reported("ExpiredRequests", "Sum")]
        ),
        _graph("Mean rows of a batch", [reported("BatchRows", "Average")]),
    ]
    if metrics.has_gpu:
        load, memory = reported("GpuUtilization", "Average"), reported("GpuMemory", "Maximum")
        widgets.append(_graph("GPU: load in percent; memory in use", [load], [memory]))
    return widgets


def _graph(
    title: str, left: Sequence[cloudwatch.IMetric], right: Sequence[cloudwatch.IMetric] = ()
) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(left), right=list(right), width=8, height=6)
