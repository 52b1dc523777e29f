"""A VPC in two availability zones. Tasks and load balancers are in private subnets; only NAT gateways are public."""

from __future__ import annotations

from aws_cdk import RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from constructs import Construct

from deployment.settings import NetworkSettings

_Services = ec2.InterfaceVpcEndpointAwsService

_ENDPOINTS = {
    "EcrApi": _Services.ECR,
    "EcrDocker": _Services.ECR_DOCKER,
    "Logs": _Services.CLOUDWATCH_LOGS,
    "SecretsManager": _Services.SECRETS_MANAGER,
    "Kms": _Services.KMS,
    "Ecs": _Services.ECS,
    "EcsAgent": _Services.ECS_AGENT,
    "EcsTelemetry": _Services.ECS_TELEMETRY,
    "SsmMessages": _Services.SSM_MESSAGES,
}


class Network(Construct):
    """The VPC of a stage, with flow logs, and with NAT gateways or interface endpoints as the way to AWS's services."""

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: NetworkSettings, log_retention: logs.RetentionDays
    ) -> None:
        super().__init__(scope, construct_id)
        self.cidr = settings.cidr
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(settings.cidr),
            max_azs=2,
            nat_gateways=settings.nat_gateways,
            subnet_configuration=_subnets(has_nat=settings.nat_gateways > 0),
            gateway_endpoints={"S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)},
        )
        self._log_flows(log_retention)
        if settings.endpoints:
            self._add_endpoints()

    @property
    def private_subnets(self) -> ec2.SubnetSelection:
        """The subnets for tasks and load balancers, whether or not NAT gateways give them a way out."""
        return ec2.SubnetSelection(subnets=[*self.vpc.private_subnets, *self.vpc.isolated_subnets])

    def _log_flows(self, retention: logs.RetentionDays) -> None:
        group = logs.LogGroup(self, "FlowLogs", retention=retention, removal_policy=RemovalPolicy.DESTROY)
        self.vpc.add_flow_log("FlowLog", destination=ec2.FlowLogDestination.to_cloud_watch_logs(group))

    def _add_endpoints(self) -> None:
        group = ec2.SecurityGroup(
            self, "Endpoints", vpc=self.vpc, allow_all_outbound=False, description="Interface endpoints of AWS services"
        )
        # cdk-nag can read the literal address range, but not the VPC's attribute that stands for the same range.
        group.add_ingress_rule(ec2.Peer.ipv4(self.cidr), ec2.Port.tcp(443), "HTTPS from inside the VPC")
        for name, service in _ENDPOINTS.items():
            self.vpc.add_interface_endpoint(
                name, service=service, security_groups=[group], subnets=self.private_subnets, open=False
            )


def _subnets(*, has_nat: bool) -> list[ec2.SubnetConfiguration]:
    if not has_nat:
        return [ec2.SubnetConfiguration(name="private", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=20)]
    return [
        ec2.SubnetConfiguration(
            name="public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24, map_public_ip_on_launch=False
        ),
        ec2.SubnetConfiguration(name="private", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=20),
    ]
