"""Synthesis: a stage file becomes one CloudFormation template per stack. `python -m deployment.app [STAGE ...]`

It needs neither an account nor a network nor a CDK bootstrap: stacks name no account and no region, nothing is looked
up, and nothing is an asset. So the templates are the same on every machine. They are committed, and a test compares.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deployment.settings import STAGES, stage_names

TEMPLATES = Path(__file__).parent / "templates"

Template = dict[str, Any]

CONTEXT: Mapping[str, Any] = {
    "@aws-cdk/aws-autoscaling:generateLaunchTemplateInsteadOfLaunchConfig": True,
    "@aws-cdk/core:defaultCrossStackReferences": "strong",
    "aws:cdk:enable-path-metadata": False,
    "aws:cdk:disable-version-reporting": True,
}
"""The CDK's feature flags of every synthesis."""

_NO_NODE = "node is not on PATH. The CDK is written in JavaScript: install nodejs 22 or 24, then run this again"


class SynthesisError(RuntimeError):
    """No template was made. The message says why: node is missing, or findings of cdk-nag are not acknowledged."""


def synthesise(path: Path, *, acknowledged: bool = True, assembly: Path | None = None) -> dict[str, Template]:
    """The templates of a stage file, by the name of their stack, in the order of deployment.

    `acknowledged` accepts the findings of cdk-nag that acknowledgements.py names. `assembly` is a folder that keeps the
    CDK's output for its command line. Raises SynthesisError, and pydantic.ValidationError for a bad stage file.
    """
    if shutil.which("node") is None:
        raise SynthesisError(_NO_NODE)
    from deployment.stacks import build  # imported late: without node the CDK's own error would not name the cause

    with tempfile.TemporaryDirectory(prefix="cdk-") as temporary:
        folder = str(assembly or temporary)
        app = build(path, outdir=folder, context=CONTEXT, acknowledged=acknowledged)
        try:
            stacks = app.synth().stacks
        except RuntimeError as error:
            raise SynthesisError("\n".join(findings(Path(folder))) or str(error)) from error
        files = {stack.stack_name.removeprefix(f"tabpfn-{path.stem}-"): stack.template_full_path for stack in stacks}
        return {name: json.loads(Path(file).read_text(encoding="utf-8")) for name, file in files.items()}


def findings(outdir: Path) -> Iterator[str]:
    """The findings of a synthesis into `outdir`, one line each: `construct: rule: description`."""
    report = outdir / "validation-report.json"
    if report.exists():
        for plugin in json.loads(report.read_text(encoding="utf-8"))["pluginReports"]:
            for violation in plugin["violations"]:
                for construct in violation["violatingConstructs"]:
                    yield f"{construct['constructPath']}: {violation['ruleName']}: {violation['description']}"


def render(template: Template) -> str:
    """The text of a template as it is committed."""
    return json.dumps(template, indent=1, ensure_ascii=False) + "\n"


def write(stage: str, templates: Mapping[str, Template], root: Path = TEMPLATES) -> list[Path]:
    """Replace all templates of a stage in `root`; return the new files."""
    folder = root / stage
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = []
    for name, template in templates.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(render(template), encoding="utf-8")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Write the templates of the named stages, or of all, and print their files. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployment.app", description="Synthesise the templates.")
    parser.add_argument("stages", nargs="*", default=stage_names(), help="stages of deployment/stages; default: all")
    parser.add_argument(
        "--assembly", type=Path, metavar="FOLDER", help="keep the CDK's output there, for `cdk deploy --app FOLDER`"
    )
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.stages) - set(stage_names())):
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(stage_names())}")
    if options.assembly is not None and len(options.stages) != 1:
        parser.error("--assembly needs exactly one stage")
    for stage in options.stages:
        try:
            templates = synthesise(STAGES / f"{stage}.yaml", assembly=options.assembly)
        except SynthesisError as error:
            print(error, file=sys.stderr)
            return 1
        for path in write(stage, templates):
            print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
