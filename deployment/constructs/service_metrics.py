"""The CloudWatch metrics of one service. Alarms, scaling and dashboard all read them here.

There are two sources. The load balancer counts from outside the server. The server reports its own numbers in its log
(namespace `TabPFNServe`). The alarms that roll a deployment back read the load balancer only, so that a server that
reports nothing cannot pass as healthy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_elasticloadbalancingv2 as elb

from deployment.constructs.load_balancer import LoadBalancer
from deployment.settings import METRIC_NAMESPACE

_MINUTE = Duration.minutes(1)
_FEWEST_REQUESTS = 20
"""With fewer requests in a minute a percentage says nothing, so it counts as 0."""


@dataclass(frozen=True, slots=True)
class ServiceMetrics:
    """The metrics of the service `name`, each over periods of one minute."""

    name: str
    balancer: LoadBalancer
    has_gpu: bool

    def reported(self, metric: str, statistic: str) -> cloudwatch.Metric:
        """A metric that the server reports itself, such as `OngoingRequests`; docs/deployment.md lists them."""
        return cloudwatch.Metric(
            namespace=METRIC_NAMESPACE,
            metric_name=metric,
            dimensions_map={"Service": self.name},
            statistic=statistic,
            period=_MINUTE,
        )

    @property
    def requests(self) -> cloudwatch.Metric:
        """Requests that reached the load balancer."""
        return self.balancer.alb.metrics.request_count(statistic="Sum", period=_MINUTE)

    @property
    def errors(self) -> cloudwatch.Metric:
        """Answers of the server with a status of 5xx. They include 504 for a missed deadline and 503 during a drain."""
        return self.balancer.alb.metrics.http_code_target(
            elb.HttpCodeTarget.TARGET_5XX_COUNT, statistic="Sum", period=_MINUTE
        )

    @property
    def balancer_errors(self) -> cloudwatch.Metric:
        """Answers of 5xx by the load balancer: no healthy task, a lost connection, or no answer in time."""
        return self.balancer.alb.metrics.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, statistic="Sum", period=_MINUTE)

    @property
    def p99_seconds(self) -> cloudwatch.Metric:
        """The 99th percentile of the time to an answer, in seconds, as the load balancer measures it."""
        return self.balancer.alb.metrics.target_response_time(statistic="p99", period=_MINUTE)

    @property
    def error_percent(self) -> cloudwatch.MathExpression:
        """Both kinds of 5xx in percent of the requests, so that a dead service counts as a failing one."""
        return cloudwatch.MathExpression(
            expression=f"IF(requests >= {_FEWEST_REQUESTS}, 100 * (FILL(server, 0) + FILL(alb, 0)) / requests, 0)",
            using_metrics={"server": self.errors, "alb": self.balancer_errors, "requests": self.requests},
            label="5xx, percent of requests",
            period=_MINUTE,
        )

    @property
    def refused_percent(self) -> cloudwatch.MathExpression:
        """Requests refused with 429, in percent of those that the server counted."""
        return cloudwatch.MathExpression(
            expression=f"IF(all >= {_FEWEST_REQUESTS}, 100 * refused / all, 0)",
            using_metrics={"refused": self.reported("RefusedRequests", "Sum"), "all": self.reported("Requests", "Sum")},
            label="refused (429), percent of requests",
            period=_MINUTE,
        )

    def unhealthy(self) -> Sequence[cloudwatch.Metric]:
        """The most tasks that failed their health check at one time, one metric for each target group."""
        groups = self.balancer.target_groups
        return [group.metrics.unhealthy_host_count(statistic="Maximum", period=_MINUTE) for group in groups]

    def healthy(self) -> Sequence[cloudwatch.Metric]:
        """The fewest healthy tasks at one time, one metric for each target group."""
        groups = self.balancer.target_groups
        return [group.metrics.healthy_host_count(statistic="Minimum", period=_MINUTE) for group in groups]
