"""GPU instances for an ECS cluster: ECS Managed Instances, or an Auto Scaling group with the GPU-optimised AMI.

Both give a task a whole GPU, and both drain an instance before they stop it. Managed Instances replaces each instance
after two to three weeks, so the server has to drain without losing requests.
"""

from __future__ import annotations

from aws_cdk import Size
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from constructs import Construct

from deployment.constructs.network import Network
from deployment.instances import instance_types
from deployment.settings import GpuServiceSettings

_SCALE_IN_AFTER_S = 600
_WARM_UP_S = 300


def add_gpu_capacity(scope: Construct, *, cluster: ecs.Cluster, network: Network, settings: GpuServiceSettings) -> str:
    """Add the kind of GPU capacity that the stage names to the cluster; return the name of its capacity provider."""
    group = ec2.SecurityGroup(
        scope, "Instances", vpc=network.vpc, allow_all_outbound=False, description="GPU instances of tabpfn-serve"
    )
    group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "ECS, ECR, CloudWatch")
    if settings.capacity == "managed_instances":
        return _managed_instances(scope, cluster, network, settings, group)
    return _auto_scaling_group(scope, cluster, network, settings, group)


def _managed_instances(
    scope: Construct,
    cluster: ecs.Cluster,
    network: Network,
    settings: GpuServiceSettings,
    group: ec2.SecurityGroup,
) -> str:
    types = [instance_types()[name] for name in settings.instance_types]
    provider = ecs.ManagedInstancesCapacityProvider(
        scope,
        "ManagedInstances",
        subnets=list(network.private_subnets.subnets or []),
        security_groups=[group],
        capacity_option_type=ecs.CapacityOptionType.SPOT if settings.spot else ecs.CapacityOptionType.ON_DEMAND,
        task_volume_storage=Size.gibibytes(settings.disk_gib),
        monitoring=ecs.InstanceMonitoring.DETAILED,
        propagate_tags=ecs.PropagateManagedInstancesTags.CAPACITY_PROVIDER,
        instance_requirements=ec2.InstanceRequirementsConfig(
            allowed_instance_types=list(settings.instance_types),
            v_cpu_count_min=min(row.vcpus for row in types),
            memory_min=Size.gibibytes(min(row.memory_gib for row in types)),
            accelerator_count_min=1,
            accelerator_manufacturers=[ec2.AcceleratorManufacturer.NVIDIA],
            accelerator_types=[ec2.AcceleratorType.GPU],
        ),
    )
    cluster.add_managed_instances_capacity_provider(provider)
    resource = provider.node.default_child
    assert isinstance(resource, ecs.CfnCapacityProvider)
    # This release of the construct lacks both: when an idle instance is stopped, and the repair of a failed GPU.
    managed = "ManagedInstancesProvider"
    resource.add_property_override(f"{managed}.InfrastructureOptimization.ScaleInAfter", _SCALE_IN_AFTER_S)
    resource.add_property_override(f"{managed}.AutoRepairConfiguration.ActionsStatus", "ENABLED")
    return provider.capacity_provider_name


def _auto_scaling_group(
    scope: Construct,
    cluster: ecs.Cluster,
    network: Network,
    settings: GpuServiceSettings,
    group: ec2.SecurityGroup,
) -> str:
    instances = autoscaling.AutoScalingGroup(
        scope,
        "AutoScalingGroup",
        vpc=network.vpc,
        vpc_subnets=network.private_subnets,
        min_capacity=0,
        # During a rollout the old and the new tasks run side by side.
        max_capacity=settings.max_tasks * settings.rollout.max_percent // 100,
        mixed_instances_policy=autoscaling.MixedInstancesPolicy(
            launch_template=_launch_template(scope, cluster, settings, group),
            launch_template_overrides=_overrides(settings.instance_types),
            instances_distribution=autoscaling.InstancesDistribution(
                on_demand_percentage_above_base_capacity=0 if settings.spot else 100,
                spot_allocation_strategy=autoscaling.SpotAllocationStrategy.PRICE_CAPACITY_OPTIMIZED,
            ),
        ),
        group_metrics=[autoscaling.GroupMetrics.all()],
        new_instances_protected_from_scale_in=True,
    )
    provider = ecs.AsgCapacityProvider(
        scope,
        "Capacity",
        auto_scaling_group=instances,
        enable_managed_scaling=True,
        enable_managed_draining=True,
        enable_managed_termination_protection=True,
        target_capacity_percent=100,
        instance_warmup_period=_WARM_UP_S,
    )
    cluster.add_asg_capacity_provider(provider)
    return provider.capacity_provider_name


def _overrides(instance_types: tuple[str, ...]) -> list[autoscaling.LaunchTemplateOverrides]:
    return [autoscaling.LaunchTemplateOverrides(instance_type=ec2.InstanceType(name)) for name in instance_types]


def _launch_template(
    scope: Construct, cluster: ecs.Cluster, settings: GpuServiceSettings, group: ec2.SecurityGroup
) -> ec2.LaunchTemplate:
    user_data = ec2.UserData.for_linux()
    user_data.add_commands(
        "echo ECS_ENABLE_GPU_SUPPORT=true >> /etc/ecs/ecs.config",
        "echo ECS_ENABLE_SPOT_INSTANCE_DRAINING=true >> /etc/ecs/ecs.config",
        "echo ECS_AWSVPC_BLOCK_IMDS=true >> /etc/ecs/ecs.config",
    )
    return ec2.LaunchTemplate(
        scope,
        "LaunchTemplate",
        # An SSM parameter, which CloudFormation resolves at deployment. So nothing is looked up now, and the driver is
        # the newest at that time.
        machine_image=ecs.EcsOptimizedImage.amazon_linux2023(ecs.AmiHardwareType.GPU),
        user_data=user_data,
        role=_instance_role(scope, cluster),
        security_group=group,
        require_imdsv2=True,
        http_put_response_hop_limit=1,
        detailed_monitoring=True,
        associate_public_ip_address=False,
        block_devices=[
            ec2.BlockDevice(
                device_name="/dev/xvda",
                volume=ec2.BlockDeviceVolume.ebs(
                    settings.disk_gib, encrypted=True, volume_type=ec2.EbsDeviceVolumeType.GP3
                ),
            )
        ],
    )


def _instance_role(scope: Construct, cluster: ecs.Cluster) -> iam.IRole:
    """What the ECS agent needs, for this cluster only. The CDK's own role could write to every log of the account."""
    role = iam.Role(
        scope,
        "InstanceRole",
        assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
        description="GPU instances of tabpfn-serve: the ECS agent",
    )
    of_cluster = [
        "ecs:DeregisterContainerInstance",
        "ecs:RegisterContainerInstance",
        "ecs:SubmitAttachmentStateChanges",
        "ecs:SubmitContainerStateChange",
        "ecs:SubmitTaskStateChange",
    ]
    of_instances = ["ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState"]
    role.add_to_policy(iam.PolicyStatement(actions=of_cluster, resources=[cluster.cluster_arn]))
    role.add_to_policy(
        iam.PolicyStatement(
            actions=of_instances,
            resources=["*"],
            conditions={"ArnEquals": {"ecs:cluster": cluster.cluster_arn}},
        )
    )
    role.add_to_policy(iam.PolicyStatement(actions=["ecs:DiscoverPollEndpoint"], resources=["*"]))
    return role.without_policy_updates()
