"""Each policy finds its fault in a committed template that was broken in one place, and finds nothing without it."""

import copy
import json
from pathlib import Path

import pytest
from broken_templates import FAULTS, Break, container

from deployment.app import TEMPLATES, Template
from deployment.policies import POLICIES, Policy, check
from deployment.policies.__main__ import main

Templates = dict[str, dict[str, Template]]


@pytest.mark.parametrize(
    ("policy", "name", "break_it", "words"), FAULTS, ids=[f"{fault[0].__name__}-{fault[3]}" for fault in FAULTS]
)
def test_a_policy_finds_its_fault(committed: Templates, policy: Policy, name: str, break_it: Break, words: str) -> None:
    stage, stack = name.split("/")
    template = copy.deepcopy(committed[stage][stack])
    assert not list(policy(template))
    break_it(template)
    assert any(words in str(violation) for violation in policy(template)), [*map(str, policy(template))]


def test_every_policy_is_shown_to_fail() -> None:
    assert {fault[0] for fault in FAULTS} == set(POLICIES)


def test_the_committed_templates_are_free_of_violations(committed: Templates) -> None:
    assert not [
        violation for stacks in committed.values() for template in stacks.values() for violation in check(template)
    ]


def test_the_command_says_which_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], committed: Templates) -> None:
    broken = copy.deepcopy(committed["production"]["gpu-service"])
    container(broken)["User"] = "root"
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    assert main([str(TEMPLATES / "production" / "gpu-service.json"), str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{path}: ")
