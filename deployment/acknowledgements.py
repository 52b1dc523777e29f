"""The findings of cdk-nag (AwsSolutions) that are accepted, each with its places and its reason.

Every other finding fails the synthesis. A test fails for an entry that no longer finds anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aws_cdk import Acknowledgment, App, Validations
from constructs import IConstruct

_MANAGED_POLICY = "arn:<AWS::Partition>:iam::aws:policy/"
_CONTAINER_INSTANCES = "arn:<AWS::Partition>:ecs:<AWS::Region>:<AWS::AccountId>:container-instance/*"
_GPU_LOG = "arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:log-group:<GpuServiceLog58F42360>:*"
_MODELS = "tabpfn-{stage}-registry:ExportsOutputFnGetAttRegistryModels63FD1888Arn0982B7A4/*"

_GPU = "gpu-service/GpuService"
_CPU = "cpu-service/CpuService"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One rule of cdk-nag, the constructs for which its finding is accepted, and why."""

    rule: str
    """The rule's id. `{stage}` stands for the name of the stage."""

    places: tuple[str, ...]
    """Stack and construct, such as `registry/Registry/RayToken`. A stage need not have all of them."""

    reason: str


ACKNOWLEDGED = (
    Acknowledged(
        "AwsSolutions-SMG4",
        ("registry/Registry/RayToken",),
        "The token guards a dashboard on the container's loopback, and a container reads it once, at its start. A new "
        "value and a new deployment rotate it. Automatic rotation would leave running containers with the old value.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM4[Policy::{_MANAGED_POLICY}AmazonECSInfrastructureRolePolicyForManagedInstances]",
        (f"{_GPU}/ManagedInstances/ManagedInstancesRole",),
        "AWS maintains the list of what ECS may do for Managed Instances. A copy of it would fall behind the service.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        (f"{_GPU}/ManagedInstances/InstanceRole",),
        "ecs:DiscoverPollEndpoint is an action without resources.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM5[Resource::{_CONTAINER_INSTANCES}]",
        (f"{_GPU}/ManagedInstances/InstanceRole",),
        "The instances do not exist before ECS starts them, and the session of the agent is bound to its own instance.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        (f"{_GPU}/Task/ExecutionRole/DefaultPolicy", f"{_CPU}/Task/ExecutionRole/DefaultPolicy"),
        "ecr:GetAuthorizationToken is an action without resources.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        (f"{_GPU}/Task/TaskRole/DefaultPolicy",),
        "ECS Exec (operator_access): the actions of ssmmessages and logs:DescribeLogGroups have no resources.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM5[Resource::{_MODELS}]",
        (f"{_GPU}/Task/TaskRole/DefaultPolicy", f"{_CPU}/Task/TaskRole/DefaultPolicy"),
        "A task may read every object of the models bucket. The stage file says which models it serves.",
    ),
    Acknowledged(
        "AwsSolutions-ECS2",
        (f"{_GPU}/Task", f"{_CPU}/Task"),
        "The variables are settings and not secret, which a policy checks by their names. Ray's token is a secret.",
    ),
    Acknowledged(
        "AwsSolutions-IAM5[Resource::*]",
        (f"{_GPU}/InstanceRole/DefaultPolicy",),
        "The ECS agent: ecs:DiscoverPollEndpoint has no resources. The other actions concern container instances "
        "that do not exist before they start; a condition binds those actions to the cluster.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM5[Resource::{_GPU_LOG}]",
        (f"{_GPU}/Task/TaskRole/DefaultPolicy",),
        "ECS Exec (operator_access) writes a stream of its own into the log of this service.",
    ),
    Acknowledged(
        "AwsSolutions-EC26",
        (f"{_GPU}/AutoScalingGroup/ASG",),
        "The rule cannot read a launch template. The disk is encrypted there, and a policy checks it.",
    ),
    Acknowledged(
        "AwsSolutions-AS3",
        (f"{_GPU}/AutoScalingGroup/ASG",),
        "The ECS capacity provider scales the group with every task, so the alarms are on the service instead.",
    ),
    Acknowledged(
        f"AwsSolutions-IAM4[Policy::{_MANAGED_POLICY}AmazonECSInfrastructureRolePolicyForLoadBalancers]",
        (f"{_GPU}/Service/AlternateTargetRole",),
        "AWS maintains the list of what ECS may do to a listener while it shifts traffic.",
    ),
)


def acknowledge(app: App, stage: str) -> None:
    """Tell cdk-nag to accept every entry of ACKNOWLEDGED in the places that this stage has."""
    for row in ACKNOWLEDGED:
        for construct in _constructs(app, stage, row):
            rule = Acknowledgment(id=row.rule.format(stage=stage), reason=row.reason)
            Validations.of(construct).acknowledge(rule)


def _constructs(app: App, stage: str, row: Acknowledged) -> Iterator[IConstruct]:
    for place in row.places:
        construct: IConstruct | None = app
        for name in f"tabpfn-{stage}-{place}".split("/"):
            construct = construct and construct.node.try_find_child(name)
        if construct is not None:
            yield construct
