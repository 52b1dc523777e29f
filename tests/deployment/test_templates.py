"""The committed templates are what the stages describe, and pass cfn-lint and every policy."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployment.app import TEMPLATES, Template, main, render, write
from deployment.policies import check
from deployment.policies.template import containers, resources
from deployment.settings import stage_names

Templates = dict[str, dict[str, Template]]

LINT_CONFIG = TEMPLATES.parent / "cfnlint.yaml"
MAX_BYTES = 51_200
"""The largest template that CloudFormation takes from a file. A larger one would need a bucket."""

OWN_NAMES = ("RoleName", "InstanceProfileName", "RepositoryName", "AlarmName", "DashboardName", "Family")
ALL_STAGES = [*stage_names(), "everything"]


def test_the_committed_templates_are_what_the_stages_describe(synthesised: Templates) -> None:
    written = {path.relative_to(TEMPLATES).as_posix(): path.read_text() for path in TEMPLATES.rglob("*.json")}
    made = {
        f"{stage}/{stack}.json": render(synthesised[stage][stack])
        for stage in stage_names()
        for stack in synthesised[stage]
    }
    assert written.keys() == made.keys(), "run: make synth"
    assert [name for name in made if made[name] != written[name]] == [], "run: make synth"


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_no_policy_is_violated(synthesised: Templates, stage: str) -> None:
    found = [f"{stack}: {violation}" for stack, template in synthesised[stage].items() for violation in check(template)]
    assert not found


def cfn_lint(folder: Path) -> subprocess.CompletedProcess[str]:
    files = sorted(map(str, folder.rglob("*.json")))
    program = [str(Path(sys.executable).with_name("cfn-lint")), "--config-file", str(LINT_CONFIG), "--"]
    return subprocess.run([*program, *files], capture_output=True, text=True, timeout=300, check=False)


def test_cfn_lint_finds_nothing(synthesised: Templates, tmp_path: Path) -> None:
    for stage, templates in synthesised.items():
        write(stage, templates, tmp_path)
    found = cfn_lint(tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_cfn_lint_would_find_something(committed: Templates, tmp_path: Path) -> None:
    template = json.loads(json.dumps(committed["demo"]["gpu-service"]))
    _, service = next(resources(template, "AWS::ECS::Service"))
    service["DeploymentConfiguration"]["Stratgy"] = "ROLLING"
    write("demo", {"gpu-service": template}, tmp_path)
    assert "Stratgy" in cfn_lint(tmp_path).stdout


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_plain_cloudformation_can_deploy(synthesised: Templates, stage: str) -> None:
    """No bootstrap, no assets, small enough; an earlier stack exports each value that a stack imports."""
    exported: set[str] = set()
    for stack, template in synthesised[stage].items():
        text = json.dumps(template)
        assert "cdk-bootstrap" not in text
        assert "AssetParameters" not in text
        assert len(render(template).encode()) <= MAX_BYTES
        imported = set(re.findall(r'"Fn::ImportValue": "([^"]+)"', text))
        assert imported <= exported, stack
        exported |= {output["Export"]["Name"] for output in template.get("Outputs", {}).values() if "Export" in output}


def test_two_stages_live_in_one_account(synthesised: Templates) -> None:
    """Every explicit name contains the name of its stage."""
    for stage, templates in synthesised.items():
        for template in templates.values():
            for resource in template["Resources"].values():
                for key, name in resource.get("Properties", {}).items():
                    if key in OWN_NAMES:
                        assert stage in name, name


def test_models_reach_the_container_with_their_digests(synthesised: Templates) -> None:
    for stack in ("gpu-service", "cpu-service"):
        (container,) = containers(synthesised["everything"][stack])
        start, bucket, middle, *_ = container.environment["TABPFN_SERVE_STORE_MODELS"]["Fn::Join"][1]
        assert start == '[{"name":"fraud","uri":"s3://'
        assert "Models" in bucket["Fn::ImportValue"]
        assert middle.startswith('/fraud/1","sha256":"1111')
        assert container.environment["TABPFN_SERVE_ENGINE_INFERENCE_PRECISION"] == "auto"


def test_options_reach_the_templates(synthesised: Templates) -> None:
    gpu = synthesised["everything"]["gpu-service"]
    ((_, provider),) = resources(gpu, "AWS::ECS::CapacityProvider")
    assert provider["ManagedInstancesProvider"]["InstanceLaunchTemplate"]["CapacityOptionType"] == "SPOT"
    ((_, listener),) = resources(gpu, "AWS::ElasticLoadBalancingV2::Listener")
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    ((_, service),) = resources(gpu, "AWS::ECS::Service")
    assert service["DeploymentConfiguration"]["Strategy"] == "CANARY"
    assert service["EnableExecuteCommand"] is True
    ((_, fallback),) = resources(synthesised["everything"]["cpu-service"], "AWS::ECS::Service")
    assert [entry["CapacityProvider"] for entry in fallback["CapacityProviderStrategy"]] == ["FARGATE", "FARGATE_SPOT"]


def test_missing_metrics_are_an_alarm_where_there_is_always_a_task(synthesised: Templates) -> None:
    def alarms(stage: str) -> list[str]:
        found = resources(synthesised[stage]["observability"], "AWS::CloudWatch::Alarm")
        return [alarm["AlarmName"] for _, alarm in found if alarm["AlarmName"].endswith("no-data")]

    assert alarms("production") == ["tabpfn-production-gpu-no-data", "tabpfn-production-cpu-no-data"]
    assert alarms("everything") == []  # min_tasks 0


def test_without_node_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["demo"]) == 1
    assert "node is not on PATH" in capsys.readouterr().err


def test_an_unknown_stage_is_an_error_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prod"])
    assert "no stage prod; there are demo, ec2, production" in capsys.readouterr().err
