"""The templates as synthesised (once a run, about twenty seconds) and as committed."""

import json
from pathlib import Path

import pytest

from deployment.app import TEMPLATES, Template, synthesise
from deployment.settings import STAGES, stage_names

Templates = dict[str, dict[str, Template]]

EVERYTHING = Path(__file__).with_name("everything.yaml")


@pytest.fixture(scope="session")
def synthesised() -> Templates:
    """By stage and stack. `everything` is the tests' own stage. A finding of cdk-nag fails this fixture."""
    paths = [*(STAGES / f"{name}.yaml" for name in stage_names()), EVERYTHING]
    return {path.stem: synthesise(path) for path in paths}


@pytest.fixture(scope="session")
def committed() -> Templates:
    return {
        folder.name: {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        for folder in TEMPLATES.iterdir()
    }
