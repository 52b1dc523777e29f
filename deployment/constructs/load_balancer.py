"""An internal Application Load Balancer in front of one service, and the security group of the tasks behind it."""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_s3 as s3
from constructs import Construct

from deployment.constructs.container import PORT, READY_PATH
from deployment.constructs.network import Network
from deployment.settings import LoadBalancerSettings


class LoadBalancer(Construct):
    """Sends each request to the ready task with the fewest outstanding requests.

    A rollout that shifts traffic (CANARY) needs two target groups; ECS then changes their weights in the rule.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        network: Network,
        settings: LoadBalancerSettings,
        access_logs: s3.IBucket,
        log_prefix: str,
        deletion_protection: bool,
        num_target_groups: int,
    ) -> None:
        super().__init__(scope, construct_id)
        self._network = network
        self._settings = settings
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=network.vpc,
            allow_all_outbound=False,
            description="Load balancer of tabpfn-serve",
        )
        self.alb = self._alb(deletion_protection)
        self._log_to(access_logs, log_prefix)
        self.target_groups = [self._target_group(f"Targets{n + 1}") for n in range(num_target_groups)]
        self.listener = self._listener()
        self.rule = elb.ApplicationListenerRule(
            self,
            "Rule",
            listener=self.listener,
            priority=10,
            conditions=[elb.ListenerCondition.path_patterns(["/*"])],
            action=self._forward(),
        )

    def _alb(self, deletion_protection: bool) -> elb.ApplicationLoadBalancer:
        return elb.ApplicationLoadBalancer(
            self,
            "Alb",
            vpc=self._network.vpc,
            internet_facing=False,
            vpc_subnets=self._network.private_subnets,
            security_group=self.security_group,
            idle_timeout=Duration.seconds(self._settings.idle_timeout_s),
            drop_invalid_header_fields=True,
            deletion_protection=deletion_protection,
        )

    def _log_to(self, bucket: s3.IBucket, prefix: str) -> None:
        # The CDK's `log_access_logs` needs the region at synthesis. The policy of the registry's bucket does not.
        self.alb.set_attribute("access_logs.s3.enabled", "true")
        self.alb.set_attribute("access_logs.s3.bucket", bucket.bucket_name)
        self.alb.set_attribute("access_logs.s3.prefix", prefix)

    def _target_group(self, construct_id: str) -> elb.ApplicationTargetGroup:
        return elb.ApplicationTargetGroup(
            self,
            construct_id,
            vpc=self._network.vpc,
            target_type=elb.TargetType.IP,
            protocol=elb.ApplicationProtocol.HTTP,
            port=PORT,
            deregistration_delay=Duration.seconds(self._settings.deregistration_delay_s),
            load_balancing_algorithm_type=elb.TargetGroupLoadBalancingAlgorithmType.LEAST_OUTSTANDING_REQUESTS,
            health_check=elb.HealthCheck(
                path=READY_PATH,
                healthy_http_codes="200",
                interval=Duration.seconds(10),
                timeout=Duration.seconds(5),
                healthy_threshold_count=2,
                unhealthy_threshold_count=3,
            ),
        )

    def _listener(self) -> elb.ApplicationListener:
        certificate = self._settings.certificate_arn
        port = 443 if certificate else 80
        self.security_group.add_ingress_rule(
            ec2.Peer.ipv4(self._network.cidr), ec2.Port.tcp(port), "Callers inside the VPC"
        )
        return self.alb.add_listener(
            "Listener",
            port=port,
            protocol=elb.ApplicationProtocol.HTTPS if certificate else elb.ApplicationProtocol.HTTP,
            certificates=[elb.ListenerCertificate.from_arn(certificate)] if certificate else None,
            ssl_policy=elb.SslPolicy.RECOMMENDED_TLS if certificate else None,
            open=False,
            default_action=elb.ListenerAction.fixed_response(404),
        )

    def _forward(self) -> elb.ListenerAction:
        first, *others = self.target_groups
        if not others:
            return elb.ListenerAction.forward([first])
        weighted = [elb.WeightedTargetGroup(target_group=first, weight=100)]
        weighted += [elb.WeightedTargetGroup(target_group=other, weight=0) for other in others]
        return elb.ListenerAction.weighted_forward(weighted)


def service_security_group(
    scope: Construct, construct_id: str, *, network: Network, callers: ec2.SecurityGroup
) -> ec2.SecurityGroup:
    """The security group of the tasks: only the load balancer may call them, and they may call AWS by HTTPS only."""
    group = ec2.SecurityGroup(
        scope, construct_id, vpc=network.vpc, allow_all_outbound=False, description="Tasks of tabpfn-serve"
    )
    group.add_ingress_rule(callers, ec2.Port.tcp(PORT), "From the load balancer")
    callers.add_egress_rule(group, ec2.Port.tcp(PORT), "To the tasks")
    group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "S3, ECR, CloudWatch, Secrets Manager")
    return group
