"""One topic that people subscribe to, the alarms that reach it, failed deployments, and a dashboard."""

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

from deployment.constructs.alarms import ServiceView, watch
from deployment.settings import ObservabilitySettings


class Observability(Construct):
    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        stage: str,
        settings: ObservabilitySettings,
        services: Sequence[ServiceView],
        always_on: Sequence[str],
    ) -> None:
        """`always_on` names the services that never have zero tasks."""
        super().__init__(scope, construct_id)
        self.topic = self._topic(stage, settings.email)
        action = aws_cloudwatch_actions.SnsAction(self.topic)
        dashboard = cloudwatch.Dashboard(self, "Dashboard", dashboard_name=f"tabpfn-{stage}")
        for view in services:
            alarms = watch(self, view=view, limits=settings, expects_data=view.name in always_on)
            for alarm in alarms:
                alarm.add_alarm_action(action)
                alarm.add_ok_action(action)
            dashboard.add_widgets(*_widgets(view, alarms))
        self._tell_of_failed_deployments(services)

    def _topic(self, stage: str, email: str | None) -> sns.Topic:
        key = kms.Key(self, "Key", enable_key_rotation=True, description=f"tabpfn-serve {stage}: alarms")
        own_account = {"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}}
        # EventBridge supports no conditions in a topic's policy, so it has none in the key's either.
        for publisher, conditions in (("cloudwatch.amazonaws.com", own_account), ("events.amazonaws.com", {})):
            key.add_to_resource_policy(
                iam.PolicyStatement(
                    actions=["kms:GenerateDataKey", "kms:Decrypt"],
                    principals=[iam.ServicePrincipal(publisher)],
                    resources=["*"],  # in a key's own policy: this key
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

    def _tell_of_failed_deployments(self, services: Sequence[ServiceView]) -> None:
        rule = events.Rule(
            self,
            "FailedDeployments",
            description="A deployment failed or was rolled back",
            event_pattern=events.EventPattern(
                source=["aws.ecs"],
                detail_type=["ECS Deployment State Change"],
                detail={"eventName": ["SERVICE_DEPLOYMENT_FAILED"]},
                resources=[view.service.service_arn for view in services if view.service is not None],
            ),
        )
        rule.add_target(targets.SnsTopic(self.topic))


def _widgets(view: ServiceView, alarms: Sequence[cloudwatch.Alarm]) -> list[cloudwatch.IWidget]:
    p50, p99 = view.own("RequestP50", "Average"), view.own("RequestP99", "Maximum")
    widgets: list[cloudwatch.IWidget] = [
        cloudwatch.TextWidget(markdown=f"# {view.name}", width=24, height=1),
        cloudwatch.AlarmStatusWidget(alarms=list(alarms), width=24, height=3),
        _graph("Requests and errors", [view.requests], [view.errors, view.balancer_errors]),
        _graph("Latency: p99 at the load balancer; p50, p99 of the slowest replica", [view.p99_seconds, p50, p99]),
        _graph("Healthy and unhealthy tasks", [*view.healthy(), *view.unhealthy()]),
        _graph(
            "Queued and in flight per replica (what scaling follows); rows waiting",
            [view.own("OngoingRequests", "Average"), view.own("OngoingRequests", "Maximum")],
            [view.own("QueuedRows", "Average")],
        ),
        _graph("Refused, expired", [view.own("RefusedRequests", "Sum"), view.own("ExpiredRequests", "Sum")]),
        _graph("Rows of a batch, mean", [view.own("BatchRows", "Average")]),
    ]
    if view.has_gpu:
        load, memory = view.own("GpuUtilization", "Average"), view.own("GpuMemory", "Maximum")
        widgets.append(_graph("GPU: load in percent; memory in use", [load], [memory]))
    return widgets


def _graph(
    title: str, left: Sequence[cloudwatch.IMetric], right: Sequence[cloudwatch.IMetric] = ()
) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(left), right=list(right), width=8, height=6)
