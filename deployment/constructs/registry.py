"""What the services of a stage read: the models bucket, the image repositories, and the token of Ray's dashboard."""

from __future__ import annotations

from typing import Any

from aws_cdk import Aws, Duration, RemovalPolicy
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_secretsmanager as secrets
from constructs import Construct

from deployment.settings import RegistrySettings

_ACCESS_LOG_DAYS = 90


class Registry(Construct):
    """Buckets, key and repositories. They stay when their stack is deleted, because they hold models and images."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: RegistrySettings, stage: str) -> None:
        super().__init__(scope, construct_id)
        self.key = kms.Key(
            self, "Key", enable_key_rotation=True, description=f"tabpfn-serve {stage}: models and secrets"
        )
        self.access_logs = self._access_log_bucket()
        self.models = self._models_bucket(settings.noncurrent_days)
        self.gpu_images = self._repository("GpuImages", f"tabpfn-serve-{stage}-gpu", settings.kept_images)
        self.cpu_images = self._repository("CpuImages", f"tabpfn-serve-{stage}-cpu", settings.kept_images)
        self.ray_token = secrets.Secret(
            self,
            "RayToken",
            description="Token of Ray inside the GPU containers, which its dashboard asks for",
            encryption_key=self.key,
            generate_secret_string=secrets.SecretStringGenerator(password_length=64, exclude_punctuation=True),
        )

    def _access_log_bucket(self) -> s3.Bucket:
        bucket = s3.Bucket(
            self,
            "AccessLogs",
            encryption=s3.BucketEncryption.S3_MANAGED,  # load balancers can write to no other kind
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            lifecycle_rules=[s3.LifecycleRule(expiration=Duration.days(_ACCESS_LOG_DAYS))],
            removal_policy=RemovalPolicy.RETAIN,
        )
        own_account = {"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}}
        writers: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("logging.s3", "models", own_account),
            ("logdelivery.elasticloadbalancing", "alb", {}),
        )
        for service, prefix, conditions in writers:
            bucket.add_to_resource_policy(
                iam.PolicyStatement(
                    actions=["s3:PutObject"],
                    principals=[iam.ServicePrincipal(f"{service}.amazonaws.com")],
                    resources=[bucket.arn_for_objects(f"{prefix}/*")],
                    conditions=conditions,
                )
            )
        return bucket

    def _models_bucket(self, noncurrent_days: int) -> s3.Bucket:
        return s3.Bucket(
            self,
            "Models",
            versioned=True,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            server_access_logs_bucket=s3.Bucket.from_bucket_name(self, "LogTarget", self.access_logs.bucket_name),
            server_access_logs_prefix="models/",
            lifecycle_rules=[
                s3.LifecycleRule(
                    noncurrent_version_expiration=Duration.days(noncurrent_days),
                    abort_incomplete_multipart_upload_after=Duration.days(2),
                )
            ],
            removal_policy=RemovalPolicy.RETAIN,
        )

    def _repository(self, construct_id: str, name: str, kept: int) -> ecr.Repository:
        return ecr.Repository(
            self,
            construct_id,
            repository_name=name,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            image_scan_on_push=True,
            lifecycle_rules=[ecr.LifecycleRule(max_image_count=kept, description=f"the newest {kept}")],
            removal_policy=RemovalPolicy.RETAIN,
        )
