"""Findings of cdk-nag (AwsSolutions) that stand as they are, each with its place and its reason.

Everything else fails the synthesis. A test fails where a row finds nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Acknowledgment, App, Validations
from constructs import IConstruct

_MANAGED_POLICY = "arn:<AWS::Partition>:iam::aws:policy/"
_CONTAINER_INSTANCES = "arn:<AWS::Partition>:ecs:<AWS::Region>:<AWS::AccountId>:container-instance/*"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    rule: str
    """`{stage}` stands for the stage's name."""

    stack: str
    path: str
    """Below the stack."""

    reason: str


ACKNOWLEDGED = (
    Acknowledged(
        "AwsSolutions-SMG4",
        "registry",
        "Registry/RayToken",
        "The token guards a dashboard that listens on a container's loopback; a container reads it once, at its start. "
        "A new value and a new deployment rotate it; rotation by itself would leave running containers with the old.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM4[Policy::{_MANAGED_POLICY}AmazonECSInfrastructureRolePolicyForManagedInstances]",
        "gpu-service",
        "GpuService/ManagedInstances/ManagedInstancesRole",
        "AWS maintains what ECS may do for Managed Instances; a copy of ours would lag behind the service.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        "gpu-service",
        "GpuService/ManagedInstances/InstanceRole",
        "ecs:DiscoverPollEndpoint is an action without resources.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM5[Resource::{_CONTAINER_INSTANCES}]",
        "gpu-service",
        "GpuService/ManagedInstances/InstanceRole",
        "The instances do not exist before ECS starts them; the agent's session is bound to its own.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        "gpu-service",
        "GpuService/Task/ExecutionRole/DefaultPolicy",
        "ecr:GetAuthorizationToken is an action without resources.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        "gpu-service",
        "GpuService/Task/TaskRole/DefaultPolicy",
        "ECS Exec (operator_access): ssmmessages has actions without resources, and so has logs:DescribeLogGroups.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        "cpu-service",
        "CpuService/Task/ExecutionRole/DefaultPolicy",
        "ecr:GetAuthorizationToken is an action without resources.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::tabpfn-{stage}-registry:ExportsOutputFnGetAttRegistryModels63FD1888Arn0982B7A4/*]",
        "gpu-service",
        "GpuService/Task/TaskRole/DefaultPolicy",
        "Every object of the models bucket, to read: which models are served is the stage file's word.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::tabpfn-{stage}-registry:ExportsOutputFnGetAttRegistryModels63FD1888Arn0982B7A4/*]",
        "cpu-service",
        "CpuService/Task/TaskRole/DefaultPolicy",
        "Every object of the models bucket, to read: which models are served is the stage file's word.",
    ),
    Acknowledged(
        "AwsSolutions-ECS2",
        "gpu-service",
        "GpuService/Task",
        "The variables are settings, none of them secret (a policy looks at their names); Ray's token is a secret.",
    ),
    Acknowledged(
        "AwsSolutions-ECS2",
        "cpu-service",
        "CpuService/Task",
        "The variables are settings, none of them secret (a policy test looks at their names).",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        "gpu-service",
        "GpuService/InstanceRole/DefaultPolicy",
        "The ECS agent: ecs:DiscoverPollEndpoint has no resources, and the container instances that the rest is about "
        "do not exist before they start; a condition binds it to the cluster.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:log-group:"
        "<GpuServiceLog58F42360>:*]",
        "gpu-service",
        "GpuService/Task/TaskRole/DefaultPolicy",
        "ECS Exec (operator_access) writes a stream of its own into the log of this service.",
    ),
    Acknowledged(
        "AwsSolutions-EC26",
        "gpu-service",
        "GpuService/AutoScalingGroup/ASG",
        "The rule cannot read a launch template. The disk is encrypted there, and a policy test says so.",
    ),
    Acknowledged(
        "AwsSolutions-AS3",
        "gpu-service",
        "GpuService/AutoScalingGroup/ASG",
        "The group is scaled by its ECS capacity provider, with every task; the alarms are on the service.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM4[Policy::{_MANAGED_POLICY}AmazonECSInfrastructureRolePolicyForLoadBalancers]",
        "gpu-service",
        "GpuService/Service/AlternateTargetRole",
        "AWS maintains what ECS may do to a listener while it shifts traffic.",
    ),
)


def acknowledge(app: App, stage: str) -> list[Acknowledged]:
    """Tell cdk-nag; the rows whose place this stage has."""
    found = []
    for row in ACKNOWLEDGED:
        construct = _find(app, [f"tabpfn-{stage}-{row.stack}", *row.path.split("/")])
        if construct is not None:
            found.append(row)
            rule = Acknowledgment(id=row.rule.format(stage=stage), reason=row.reason)
            Validations.of(construct).acknowledge(rule)
    return found


def _find(root: IConstruct, path: list[str]) -> IConstruct | None:
    for name in path:
        child = root.node.try_find_child(name)
        if child is None:
            return None
        root = child
    return root
