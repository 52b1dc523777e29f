"""Stage files: contradictions are refused on reading, and every setting and metric named is one of the server's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from server_variables import server_variables

from deployment.app import Template
from deployment.cost import _NUM_ENDPOINTS
from deployment.policies.template import containers, resources
from deployment.settings import GRACE_S, METRIC_NAMESPACE, STAGES, Stage, read_stage, stage_names
from serve.replica.lifecycle import GRACE_S as SERVER_GRACE_S
from serve.settings import EngineSettings
from serve.telemetry.cloudwatch import CloudWatchRecorder
from serve.telemetry.emf import Gauges, documents
from serve.telemetry.recorder import ComputedBatch

Templates = dict[str, dict[str, Template]]

GPU = {"instance_types": ["g6.xlarge"]}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"gpu": {}}, "Extra inputs are not permitted"),
        ({"gpu_service": {**GPU, "colour": "red"}}, "Extra inputs are not permitted"),
        ({"gpu_service": {**GPU, "stop_timeout_s": 55}}, "lame_duck_s 5 and drain_timeout_s 30 need 56"),
        ({"gpu_service": {**GPU, "min_tasks": 3, "max_tasks": 2}}, "min_tasks is above max_tasks"),
        ({"gpu_service": {"instance_types": ["p9.huge"]}}, "not in instance_types.yaml"),
        ({"network": {"nat_gateways": 0}}, "NAT gateway"),
        ({"server": {"environment": {"HF_TOKEN": "x"}}}, "not settings of the server"),
        ({"server": {"models": [{"name": "a", "key": "a", "sha256": "0" * 64}] * 2}}, "two models have one name"),
        ({"server": {"models": [{"name": "a", "key": "a", "sha256": "abc"}]}}, "should match pattern"),
        ({"cpu_service": {"stop_timeout_s": 300}}, "may take 300 s and Fargate allows 120 s"),
        ({"cpu_service": {}, "server": {"drain_timeout_s": 95}}, "may take 121 s and Fargate allows 120 s"),
        ({"cpu_service": {"stop_timeout_s": 40}}, "need 56"),
        ({"cpu_service": {"min_tasks": 3, "max_tasks": 2}}, "min_tasks is above max_tasks"),
    ],
)
def test_a_bad_stage_is_refused(part: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"name": "bad", "gpu_service": GPU, **part}))
    with pytest.raises(ValidationError, match=words):
        read_stage(path)


def test_the_stop_timeout_follows_the_server_variables() -> None:
    stage = Stage(name="demo", gpu_service=GPU, server={"lame_duck_s": 10, "drain_timeout_s": 60})
    assert stage.gpu_service.stop_s(stage.server) == 10 + 1 + 60 + 20
    longer = stage.gpu_service.model_copy(update={"stop_timeout_s": 100})
    assert longer.stop_s(stage.server) == 100


def test_the_grace_is_the_one_of_the_server() -> None:
    assert GRACE_S == SERVER_GRACE_S


def test_stages_are_named_as_their_files() -> None:
    assert [read_stage(STAGES / f"{name}.yaml").name for name in stage_names()] == ["demo", "ec2", "production"]


def test_a_stage_cannot_be_changed() -> None:
    stage = Stage(name="demo", gpu_service=GPU)
    with pytest.raises(ValidationError):
        stage.name = "other"


def test_every_variable_is_a_setting_of_the_server(synthesised: Templates) -> None:
    """With an unknown one the server refuses to start."""
    for templates in synthesised.values():
        for stack in ("gpu-service", "cpu-service"):
            for container in containers(templates.get(stack, {})):
                given = {name for name in container.environment if name.startswith("TABPFN_SERVE_")}
                assert given <= server_variables()


@pytest.mark.parametrize(("stack", "precision"), [("gpu-service", "auto"), ("cpu-service", "float32")])
def test_gpus_compute_in_16_bit_and_cpus_in_float32(committed: Templates, stack: str, precision: str) -> None:
    group = "TABPFN_SERVE_ENGINE_"
    for templates in committed.values():
        for container in containers(templates.get(stack, {})):
            given = {
                name.removeprefix(group).lower(): value
                for name, value in container.environment.items()
                if name.startswith(group)
            }
            assert EngineSettings.model_validate(given).chosen_precision == precision


def test_every_metric_that_is_watched_is_one_that_the_server_emits(synthesised: Templates) -> None:
    gauges = Gauges([0.0], [0.0], ready=1.0, gpu_memory_bytes=1.0, gpu_utilization=[1.0])
    recorder = CloudWatchRecorder()
    recorder.answered("fraud", "ok", [0.004])
    recorder.computed(ComputedBatch("fraud", 1, 1, 0.004, None, [0.002]))
    traffic = recorder.take()
    document = next(iter(documents(traffic, gauges, namespace=METRIC_NAMESPACE, service="s", timestamp_ms=0)))
    emitted = {metric["Name"] for metric in document["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    watched = set(watched_metrics(synthesised))
    assert {"OngoingRequests", "Requests", "RefusedRequests"} <= watched
    assert watched <= emitted


def watched_metrics(synthesised: Templates) -> Iterator[str]:
    """The server's own metrics that alarms and scaling policies read."""
    for metric in named_metrics(synthesised):
        if metric.get("Namespace") == METRIC_NAMESPACE:
            yield metric["MetricName"]


def named_metrics(synthesised: Templates) -> Iterator[dict[str, Any]]:
    for templates in synthesised.values():
        for template in templates.values():
            for _, alarm in resources(template, "AWS::CloudWatch::Alarm"):
                yield alarm
                yield from (part["MetricStat"]["Metric"] for part in alarm.get("Metrics", []) if "MetricStat" in part)
            for _, policy in resources(template, "AWS::ApplicationAutoScaling::ScalingPolicy"):
                yield policy["TargetTrackingScalingPolicyConfiguration"].get("CustomizedMetricSpecification", {})


def test_the_estimate_counts_the_endpoints_that_are_made(synthesised: Templates) -> None:
    endpoints = list(resources(synthesised["ec2"]["network"], "AWS::EC2::VPCEndpoint"))
    assert [found.get("VpcEndpointType") for _, found in endpoints].count("Interface") == _NUM_ENDPOINTS
