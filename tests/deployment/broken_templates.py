"""Faults: a committed template, broken in one place, and the policy or the rule of cdk-nag that must find it."""

from collections.abc import Callable
from typing import Any

from deployment.app import Template
from deployment.policies import Policy, access, containers, rollout, timing
from deployment.policies.template import resources

Break = Callable[[Template], Any]

TASK, SERVICE = "AWS::ECS::TaskDefinition", "AWS::ECS::Service"
BALANCER, TARGETS = "AWS::ElasticLoadBalancingV2::LoadBalancer", "AWS::ElasticLoadBalancingV2::TargetGroup"
LAUNCH = "AWS::EC2::LaunchTemplate"

GPU, CPU = "production/gpu-service", "production/cpu-service"
DEMO, EC2, REGISTRY, NETWORK = "demo/gpu-service", "ec2/gpu-service", "production/registry", "production/network"


def first(template: Template, kind: str) -> dict[str, Any]:
    return next(resources(template, kind))[1]


def container(template: Template) -> dict[str, Any]:
    found: dict[str, Any] = first(template, TASK)["ContainerDefinitions"][0]
    return found


def on(path: str, value: Any) -> Break:
    """Set a property of the container, by the names between dots."""
    return lambda template: put(container(template), path, value)


def of(kind: str, path: str, value: Any) -> Break:
    """Set a property of the first resource of a type."""
    return lambda template: put(first(template, kind), path, value)


def put(place: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[last] = value


def variable(name: str, value: str) -> Break:
    def set_it(template: Template) -> None:
        environment = container(template)["Environment"]
        environment[:] = [entry for entry in environment if entry["Name"] != name] + [{"Name": name, "Value": value}]

    return set_it


def without_variable(name: str) -> Break:
    def remove_it(template: Template) -> None:
        environment = container(template)["Environment"]
        environment[:] = [entry for entry in environment if entry["Name"] != name]

    return remove_it


def attribute(kind: str, entries: str, key: str, value: str) -> Break:
    def set_it(template: Template) -> None:
        place = first(template, kind)[entries]
        place[:] = [entry for entry in place if entry["Key"] != key] + [{"Key": key, "Value": value}]

    return set_it


def statement(**changes: Any) -> Break:
    """Change the first statement of the first IAM policy."""
    return lambda template: first(template, "AWS::IAM::Policy")["PolicyDocument"]["Statement"][0].update(changes)


def add(name: str, kind: str, **properties: Any) -> Break:
    return lambda template: template["Resources"].update({name: {"Type": kind, "Properties": properties}})


def tag(value: Any) -> Break:
    def set_it(template: Template) -> None:
        container(template)["Image"]["Fn::Join"][1][-1] = value

    return set_it


ONE_GPU = [{"Type": "GPU", "Value": "1"}]
DELAY = "deregistration_delay.timeout_seconds"

FAULTS: list[tuple[Policy, str, Break, str]] = [
    # policy, template, how it is broken, words of the violation
    (containers.fargate_can_run_it, CPU, on("ResourceRequirements", ONE_GPU), "Fargate has no GPU"),
    (containers.fargate_can_run_it, CPU, on("LinuxParameters.SharedMemorySize", 1024), "SharedMemorySize"),
    (containers.fargate_can_run_it, CPU, on("LinuxParameters.Tmpfs", [{"Size": 64}]), "Tmpfs"),
    (containers.not_root, GPU, on("User", "0:0"), "runs as 0:0"),
    (containers.not_root, GPU, on("User", "root"), "runs as root"),
    (containers.not_root, GPU, lambda template: container(template).pop("User"), "the user of the image"),
    (containers.locked_down, GPU, on("ReadonlyRootFilesystem", False), "can be written to"),
    (containers.locked_down, GPU, on("Privileged", True), "privileged"),
    (containers.locked_down, GPU, on("LinuxParameters.Capabilities", {"Add": ["SYS_ADMIN"]}), "capabilities"),
    (containers.locked_down, GPU, on("LinuxParameters.InitProcessEnabled", False), "no init"),
    (containers.no_secrets_in_environment, GPU, variable("HF_TOKEN", "x"), "HF_TOKEN"),
    (containers.no_secrets_in_environment, GPU, variable("DB_PASSWORD", "x"), "DB_PASSWORD"),
    (containers.no_secrets_in_environment, GPU, variable("AWS_SECRET_ACCESS_KEY", "x"), "AWS_SECRET_ACCESS_KEY"),
    (containers.no_secrets_in_environment, GPU, variable("apiKey_API_KEY", "x"), "apiKey_API_KEY"),
    (containers.images_are_pinned, GPU, on("Image", "repository/tabpfn-serve:latest"), "`latest`"),
    (containers.images_are_pinned, GPU, on("Image", "host:5000/tabpfn-serve"), "no tag"),
    (containers.images_are_pinned, GPU, tag(":latest"), "`latest`"),
    (
        containers.images_are_pinned,
        GPU,
        lambda template: template["Parameters"]["ImageTag"].pop("AllowedPattern"),
        "needs an AllowedPattern",
    ),
    (
        containers.repositories_are_immutable,
        REGISTRY,
        of("AWS::ECR::Repository", "ImageTagMutability", "MUTABLE"),
        "moved to another image",
    ),
    (containers.health_is_checked, GPU, lambda template: container(template).pop("HealthCheck"), "no health check"),
    (containers.health_is_checked, GPU, on("HealthCheck.Command", ["CMD", "true"]), "no health check"),
    (containers.health_is_checked, GPU, on("HealthCheck.StartPeriod", 900), "above 300"),
    (containers.tasks_fit_their_instances, GPU, of(TASK, "Memory", "16384"), "asks for 16384 MiB"),
    (containers.tasks_fit_their_instances, EC2, of(TASK, "Memory", "16384"), "asks for 16384 MiB"),
    (containers.tasks_fit_their_instances, GPU, of(TASK, "Cpu", "4096"), "asks for 4096 CPU units"),
    (containers.tasks_fit_their_instances, GPU, on("ResourceRequirements.0.Value", "2"), "asks for 2 GPUs"),
    (containers.tasks_fit_their_instances, GPU, lambda template: first(template, TASK).pop("Memory"), "its MiB"),
    (
        containers.tasks_fit_their_instances,
        GPU,
        of(
            "AWS::ECS::CapacityProvider",
            "ManagedInstancesProvider.InstanceLaunchTemplate.InstanceRequirements.AllowedInstanceTypes",
            ["g6.*"],
        ),
        "not in instance_types.yaml",
    ),
    (containers.shared_memory_fits, GPU, on("LinuxParameters.SharedMemorySize", 8192), "more than half"),
    (timing.stop_waits_for_the_drain, GPU, on("StopTimeout", 55), "lame duck 5 s and drain 30 s need 56 s"),
    (
        timing.stop_waits_for_the_drain,
        CPU,
        lambda template: container(template).pop("StopTimeout"),
        "set TABPFN_SERVE_API_LAME_DUCK_S",
    ),
    (timing.stop_waits_for_the_drain, CPU, variable("TABPFN_SERVE_API_LAME_DUCK_S", "6"), "lame duck 6 s"),
    (timing.stop_waits_for_the_drain, CPU, without_variable("TABPFN_SERVE_API_LAME_DUCK_S"), "set TABPFN_SERVE_API"),
    (timing.fargate_stops_in_two_minutes, CPU, on("StopTimeout", 300), "Fargate allows 120"),
    (
        timing.drain_answers_the_longest,
        GPU,
        variable("TABPFN_SERVE_BATCHING_DEFAULT_TIMEOUT_MS", "31000"),
        "a request may take 31 s",
    ),
    (
        timing.deregistration_waits_for_the_longest,
        GPU,
        attribute(TARGETS, "TargetGroupAttributes", DELAY, "15"),
        "delay is 15",
    ),
    (
        timing.idle_timeouts_are_in_order,
        GPU,
        attribute(BALANCER, "LoadBalancerAttributes", "idle_timeout.timeout_seconds", "30"),
        "idle timeout is 30",
    ),
    (timing.idle_timeouts_are_in_order, GPU, variable("TABPFN_SERVE_API_KEEP_ALIVE_S", "45"), "keep-alive 45"),
    (timing.idle_timeouts_are_in_order, CPU, variable("TABPFN_SERVE_API_KEEP_ALIVE_S", "5"), "keep-alive 5"),
    (
        timing.starts_are_waited_for,
        GPU,
        lambda template: first(template, SERVICE).pop("HealthCheckGracePeriodSeconds"),
        "no HealthCheckGracePeriodSeconds",
    ),
    (timing.health_checks_are_readiness, GPU, of(TARGETS, "HealthCheckPath", "/"), "does not ask"),
    (
        timing.health_checks_are_readiness,
        GPU,
        of(SERVICE, "LoadBalancers.0.TargetGroupArn", {"Fn::ImportValue": "another"}),
        "not in this template",
    ),
    (
        rollout.one_gpu_is_replaced_in_place,
        DEMO,
        of(SERVICE, "DeploymentConfiguration.MaximumPercent", 200),
        "one GPU",
    ),
    (
        rollout.one_gpu_is_replaced_in_place,
        DEMO,
        of(SERVICE, "DeploymentConfiguration.Strategy", "CANARY"),
        "one GPU",
    ),
    (rollout.rollouts_can_move, GPU, of(SERVICE, "DeploymentConfiguration.MaximumPercent", 100), "no version ever"),
    (rollout.rollouts_can_move, DEMO, of(SERVICE, "AvailabilityZoneRebalancing", "ENABLED"), "rebalancing"),
    (
        rollout.capacity_holds_a_rollout,
        EC2,
        of("AWS::AutoScaling::AutoScalingGroup", "MaxSize", "4"),
        "does not hold 4 tasks at 200 percent",
    ),
    (
        rollout.bad_versions_are_rolled_back,
        EC2,
        of(SERVICE, "DeploymentConfiguration.Alarms.Rollback", False),
        "no alarm rolls",
    ),
    (
        rollout.bad_versions_are_rolled_back,
        GPU,
        lambda template: first(template, SERVICE)["DeploymentConfiguration"].pop("DeploymentCircuitBreaker"),
        "circuit breaker",
    ),
    (access.no_wildcard_resources, GPU, statement(Resource="*"), "on every resource"),
    (
        access.nothing_is_public,
        GPU,
        of(SERVICE, "NetworkConfiguration.AwsvpcConfiguration.AssignPublicIp", "ENABLED"),
        "public addresses",
    ),
    (access.nothing_is_public, GPU, of(BALANCER, "Scheme", "internet-facing"), "faces the internet"),
    (access.nothing_is_public, NETWORK, of("AWS::EC2::Subnet", "MapPublicIpOnLaunch", True), "public address"),
    (
        access.nothing_is_public,
        EC2,
        of(LAUNCH, "LaunchTemplateData.NetworkInterfaces.0.AssociatePublicIpAddress", True),
        "public addresses",
    ),
    (
        access.buckets_are_encrypted,
        REGISTRY,
        lambda template: first(template, "AWS::S3::Bucket").pop("BucketEncryption"),
        "does not state its encryption",
    ),
    (
        access.instances_are_closed,
        EC2,
        of(LAUNCH, "LaunchTemplateData.BlockDeviceMappings.0.Ebs.Encrypted", False),
        "not encrypted",
    ),
    (
        access.instances_are_closed,
        EC2,
        of(LAUNCH, "LaunchTemplateData.MetadataOptions.HttpTokens", "optional"),
        "without a token",
    ),
]

ANYONE = {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80}
INLINE_POLICY = {
    "PolicyName": "inline",
    "PolicyDocument": {"Statement": [{"Effect": "Allow", "Action": "ecs:*", "Resource": "arn:aws:ecs:::cluster/a"}]},
}

FAULTS_FOR_CDK_NAG: list[tuple[str, str, Break]] = [
    # finding of cdk-nag, template, how it is broken
    ("AwsSolutions-IAM5[Action::s3:*]", GPU, statement(Action="s3:*")),
    ("AwsSolutions-IAM5[Action::*]", GPU, statement(Action=["s3:GetObject", "*"])),
    ("AwsSolutions-IAM5[Action::ecs:*]", GPU, of("AWS::IAM::Role", "Policies", [INLINE_POLICY])),
    (
        "AwsSolutions-EC23",
        GPU,
        of("AWS::EC2::SecurityGroup", "SecurityGroupIngress", [{"CidrIp": "0.0.0.0/0", **ANYONE}]),
    ),
    ("AwsSolutions-EC23", GPU, add("Open", "AWS::EC2::SecurityGroupIngress", CidrIpv6="::/0", **ANYONE)),
    ("AwsSolutions-S2", REGISTRY, of("AWS::S3::Bucket", "PublicAccessBlockConfiguration.BlockPublicPolicy", False)),
    ("AwsSolutions-S10", REGISTRY, of("AWS::S3::BucketPolicy", "PolicyDocument.Statement", [])),
]
"""No policy looks for these, because every synthesis runs cdk-nag."""
