"""What cdk-nag finds: the accepted findings and no others, and the faults that no policy looks for."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from broken_templates import FAULTS_FOR_CDK_NAG

from deployment.app import CONTEXT, SynthesisError, Template, findings, synthesise
from deployment.settings import STAGES

Templates = dict[str, dict[str, Template]]


@pytest.mark.usefixtures("synthesised")
def test_cdk_nag_finds_what_is_acknowledged_and_nothing_else() -> None:
    """The fixture synthesised, so nothing else was found. Here nothing is acknowledged, so every entry must appear."""
    from deployment.acknowledgements import ACKNOWLEDGED  # imports the CDK: only after the fixture has looked for node

    found: set[tuple[str, str]] = set()
    for path in (STAGES / "ec2.yaml", Path(__file__).with_name("everything.yaml")):
        with pytest.raises(SynthesisError) as error:
            synthesise(path, acknowledged=False)
        for line in str(error.value).splitlines():
            construct, rule = line.split(": ")[:2]
            stack, _, place = construct.removeprefix(f"tabpfn-{path.stem}-").partition("/")
            rule = rule.replace(f"tabpfn-{path.stem}-", "tabpfn-{stage}-")
            found.add((f"{stack}/{place.removesuffix('/Resource')}", rule))
    assert found == {(place, row.rule) for row in ACKNOWLEDGED for place in row.places}
    assert all(len(row.reason) > 40 for row in ACKNOWLEDGED)


@pytest.mark.usefixtures("synthesised")
def test_cdk_nag_finds_the_faults_that_no_policy_looks_for(committed: Templates, tmp_path: Path) -> None:
    """Each fault is new in its template, and no acknowledgement accepts it."""
    from deployment.acknowledgements import ACKNOWLEDGED

    templates = {name.replace("/", "-"): _committed(committed, name) for _, name, _ in FAULTS_FOR_CDK_NAG}
    for number, (_, name, break_it) in enumerate(FAULTS_FOR_CDK_NAG):
        templates[f"fault-{number}"] = _committed(committed, name)
        break_it(templates[f"fault-{number}"])
    found: dict[str, set[str]] = {name: set() for name in templates}
    for line in _findings_of(templates, tmp_path):
        construct, rule, _ = line.split(": ", 2)
        found[construct.partition("/")[0]].add(rule)
    accepted = {row.rule for row in ACKNOWLEDGED}
    for number, (rule, name, _) in enumerate(FAULTS_FOR_CDK_NAG):
        assert rule in found[f"fault-{number}"] - found[name.replace("/", "-")] - accepted


def _committed(committed: Templates, name: str) -> Template:
    stage, stack = name.split("/")
    return copy.deepcopy(committed[stage][stack])


def _findings_of(templates: Mapping[str, Template], folder: Path) -> Iterator[str]:
    """cdk-nag's findings in templates, each included into a stack of its own."""
    import cdk_nag
    from aws_cdk import App, BootstraplessSynthesizer, Stack, Validations
    from aws_cdk.cloudformation_include import CfnInclude

    app = App(outdir=str(folder / "out"), context=dict(CONTEXT))
    Validations.of(app).add_plugins(cdk_nag.AwsSolutionsChecks(app))
    for name, template in templates.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(template))
        CfnInclude(Stack(app, name, synthesizer=BootstraplessSynthesizer()), "Included", template_file=str(file))
    with pytest.raises(RuntimeError):
        app.synth()
    yield from findings(folder / "out")
