"""Of access: nothing public, no wildcard without a reason, no bucket or disk open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deployment.policies.template import Policy, Template, Violation, resources

_ANYWHERE = ("0.0.0.0/0", "::/0")

ACTIONS_WITHOUT_RESOURCES = {
    "ecr:GetAuthorizationToken",
    "ecs:DiscoverPollEndpoint",
    "logs:DescribeLogGroups",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}
"""AWS knows no resource for these: `*` is the only way to write them."""


def no_wildcard_actions(template: Template) -> Iterator[Violation]:
    for name, statement in _allowed(template):
        for action in _listed(statement.get("Action")):
            if "*" in action:
                yield Violation(name, f"allows {action}")


def no_wildcard_resources(template: Template) -> Iterator[Violation]:
    for name, statement in _allowed(template):
        if "*" not in _listed(statement.get("Resource")) or _bound_to_a_cluster(statement):
            continue
        for action in _listed(statement.get("Action")):
            if action not in ACTIONS_WITHOUT_RESOURCES:
                yield Violation(name, f"allows {action} on everything")


def _allowed(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """Statements of identities. A key's and a bucket's own policies speak of that key and bucket."""
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
    """The ECS agent's own actions, which a condition binds to this cluster."""
    return "ecs:cluster" in statement.get("Condition", {}).get("ArnEquals", {})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def nothing_is_public(template: Template) -> Iterator[Violation]:
    for name, service in resources(template, "AWS::ECS::Service"):
        network = service.get("NetworkConfiguration", {}).get("AwsvpcConfiguration", {})
        if network.get("AssignPublicIp", "DISABLED") != "DISABLED":
            yield Violation(name, "its tasks get public addresses")
    for name, balancer in resources(template, "AWS::ElasticLoadBalancingV2::LoadBalancer"):
        if balancer.get("Scheme") != "internal":
            yield Violation(name, "the load balancer faces the internet")
    for name, subnet in resources(template, "AWS::EC2::Subnet"):
        if subnet.get("MapPublicIpOnLaunch"):
            yield Violation(name, "what starts in this subnet gets a public address")
    for name, launch in resources(template, "AWS::EC2::LaunchTemplate"):
        for interface in launch.get("LaunchTemplateData", {}).get("NetworkInterfaces", []):
            if interface.get("AssociatePublicIpAddress"):
                yield Violation(name, "its instances get public addresses")


def nobody_may_call_from_anywhere(template: Template) -> Iterator[Violation]:
    for name, group in resources(template, "AWS::EC2::SecurityGroup"):
        for rule in group.get("SecurityGroupIngress", []):
            yield from _open(name, rule)
    for name, rule in resources(template, "AWS::EC2::SecurityGroupIngress"):
        yield from _open(name, rule)


def _open(name: str, rule: dict[str, Any]) -> Iterator[Violation]:
    if rule.get("CidrIp") in _ANYWHERE or rule.get("CidrIpv6") in _ANYWHERE:
        yield Violation(name, "lets anyone in")


def buckets_are_closed(template: Template) -> Iterator[Violation]:
    """No public access, encrypted, and TLS only by their policy."""
    tls_only = {_bucket_id(policy) for _, policy in resources(template, "AWS::S3::BucketPolicy") if _asks_tls(policy)}
    for name, bucket in resources(template, "AWS::S3::Bucket"):
        blocked = bucket.get("PublicAccessBlockConfiguration", {})
        if len(blocked) < 4 or not all(blocked.values()):
            yield Violation(name, "public access is not blocked")
        if "BucketEncryption" not in bucket:
            yield Violation(name, "is not encrypted")
        if name not in tls_only:
            yield Violation(name, "can be read without TLS")


def _bucket_id(policy: dict[str, Any]) -> Any:
    bucket = policy.get("Bucket")
    return bucket.get("Ref") if isinstance(bucket, dict) else bucket


def _asks_tls(policy: dict[str, Any]) -> bool:
    return any(
        statement.get("Effect") == "Deny"
        and statement.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport") == "false"
        for statement in policy.get("PolicyDocument", {}).get("Statement", [])
    )


def instances_are_closed(template: Template) -> Iterator[Violation]:
    """Encrypted disks and IMDSv2: what cdk-nag cannot read in a launch template."""
    for name, launch in resources(template, "AWS::EC2::LaunchTemplate"):
        data = launch.get("LaunchTemplateData", {})
        disks = [mapping.get("Ebs", {}) for mapping in data.get("BlockDeviceMappings", [])]
        if not disks or not all(disk.get("Encrypted") for disk in disks):
            yield Violation(name, "a disk is not encrypted")
        if data.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield Violation(name, "the instance metadata service answers without a token")


ACCESS_POLICIES: tuple[Policy, ...] = (
    no_wildcard_actions,
    no_wildcard_resources,
    nothing_is_public,
    nobody_may_call_from_anywhere,
    buckets_are_closed,
    instances_are_closed,
)
