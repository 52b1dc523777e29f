"""Policies of access, as far as cdk-nag does not check it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deployment.policies.template import Policy, Template, Violation, resources

ACTIONS_WITHOUT_RESOURCES = {
    "ecr:GetAuthorizationToken",
    "ecs:DiscoverPollEndpoint",
    "logs:DescribeLogGroups",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}
"""AWS defines no resource for these actions, so `*` is the only resource that can be written."""


def no_wildcard_resources(template: Template) -> Iterator[Violation]:
    """Only actions without resources may name the resource `*`.

    cdk-nag finds `*` too, but its acknowledgement is for a whole role and would accept every further action in it.
    """
    for name, statement in _allowed(template):
        if "*" not in _listed(statement.get("Resource")) or _bound_to_a_cluster(statement):
            continue
        for action in _listed(statement.get("Action")):
            if action not in ACTIONS_WITHOUT_RESOURCES:
                yield Violation(name, f"allows {action} on every resource; name the resources")


def _allowed(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """The allowing statements of identities. In the policy of a key or bucket, `*` means that key or bucket."""
    for kind in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
        for name, found in resources(template, kind):
            yield from _statements(name, found.get("PolicyDocument", {}))
    for name, role in resources(template, "AWS::IAM::Role"):
        for policy in role.get("Policies", []):
            yield from _statements(name, policy.get("PolicyDocument", {}))


def _statements(name: str, document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for statement in document.get("Statement", []):
        if statement.get("Effect") == "Allow":
            yield name, statement


def _bound_to_a_cluster(statement: dict[str, Any]) -> bool:
    """Whether a condition binds the statement to one cluster, as in the role of the ECS agent."""
    return "ecs:cluster" in statement.get("Condition", {}).get("ArnEquals", {})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def nothing_is_public(template: Template) -> Iterator[Violation]:
    """Tasks and instances have no public addresses, and load balancers are internal."""
    for name, service in resources(template, "AWS::ECS::Service"):
        network = service.get("NetworkConfiguration", {}).get("AwsvpcConfiguration", {})
        if network.get("AssignPublicIp", "DISABLED") != "DISABLED":
            yield Violation(name, "its tasks get public addresses")
    for name, balancer in resources(template, "AWS::ElasticLoadBalancingV2::LoadBalancer"):
        if balancer.get("Scheme") != "internal":
            yield Violation(name, "the load balancer faces the internet; set Scheme to internal")
    for name, subnet in resources(template, "AWS::EC2::Subnet"):
        if subnet.get("MapPublicIpOnLaunch"):
            yield Violation(name, "instances in this subnet get public addresses")
    for name, launch in resources(template, "AWS::EC2::LaunchTemplate"):
        for interface in launch.get("LaunchTemplateData", {}).get("NetworkInterfaces", []):
            if interface.get("AssociatePublicIpAddress"):
                yield Violation(name, "its instances get public addresses")


def buckets_are_encrypted(template: Template) -> Iterator[Violation]:
    """A bucket states its encryption, because the models bucket uses a key of the stage and not S3's default."""
    for name, bucket in resources(template, "AWS::S3::Bucket"):
        if "BucketEncryption" not in bucket:
            yield Violation(name, "does not state its encryption")


def instances_are_closed(template: Template) -> Iterator[Violation]:
    """Launch templates encrypt their disks and require IMDSv2. cdk-nag cannot read either there."""
    for name, launch in resources(template, "AWS::EC2::LaunchTemplate"):
        data = launch.get("LaunchTemplateData", {})
        disks = [mapping.get("Ebs", {}) for mapping in data.get("BlockDeviceMappings", [])]
        if not disks or not all(disk.get("Encrypted") for disk in disks):
            yield Violation(name, "a disk is not encrypted")
        if data.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield Violation(name, "the instance metadata service answers without a token")


ACCESS_POLICIES: tuple[Policy, ...] = (
    no_wildcard_resources,
    nothing_is_public,
    buckets_are_encrypted,
    instances_are_closed,
)
