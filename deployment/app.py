"""The composer: a stage file -> its stacks -> one CloudFormation template each. `python -m deployment.app [STAGE ...]`

Synthesis needs no account, no network and no bootstrap: stacks know neither account nor region, nothing is looked up,
nothing is an asset. The templates are therefore the same everywhere, committed, and compared by a test.
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

_CONTEXT: Mapping[str, Any] = {
    "@aws-cdk/aws-autoscaling:generateLaunchTemplateInsteadOfLaunchConfig": True,
    "@aws-cdk/core:defaultCrossStackReferences": "strong",
    "aws:cdk:enable-path-metadata": False,
    "aws:cdk:disable-version-reporting": True,
}

_NO_NODE = "node is not on PATH: the CDK is written in JavaScript and needs it (nodejs 22 or 24)"


class SynthesisError(RuntimeError):
    """No template, and the message says why: node is missing, or cdk-nag found what nobody acknowledged."""


def synthesise(path: Path, *, acknowledged: bool = True, assembly: Path | None = None) -> dict[str, Template]:
    """The templates of a stage file, by the name of their stack, in the order of deployment.

    `acknowledged` tells cdk-nag of the findings in acknowledgements.py. `assembly` keeps the CDK's own output in a
    folder, for its command line. Raises SynthesisError, ValidationError.
    """
    if shutil.which("node") is None:
        raise SynthesisError(_NO_NODE)
    from deployment.stacks import build  # only now, since the CDK's own words would not name the cause

    with tempfile.TemporaryDirectory(prefix="cdk-") as temporary:
        folder = str(assembly or temporary)
        app = build(path, outdir=folder, context=_CONTEXT, acknowledged=acknowledged)
        try:
            stacks = app.synth().stacks
        except RuntimeError as error:
            raise SynthesisError("\n".join(_findings(Path(folder))) or str(error)) from error
        files = {stack.stack_name.removeprefix(f"tabpfn-{path.stem}-"): stack.template_full_path for stack in stacks}
        return {name: json.loads(Path(file).read_text(encoding="utf-8")) for name, file in files.items()}


def _findings(outdir: Path) -> Iterator[str]:
    """A line for each finding in the CDK's report."""
    report = outdir / "validation-report.json"
    if report.exists():
        for plugin in json.loads(report.read_text(encoding="utf-8"))["pluginReports"]:
            for violation in plugin["violations"]:
                for construct in violation["violatingConstructs"]:
                    yield f"{construct['constructPath']}: {violation['ruleName']}: {violation['description']}"


def render(template: Template) -> str:
    """As committed."""
    return json.dumps(template, indent=1, ensure_ascii=False) + "\n"


def write(stage: str, templates: Mapping[str, Template], root: Path = TEMPLATES) -> list[Path]:
    """Replace the stage's templates; the files."""
    folder = root / stage
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = []
    for name, template in templates.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(render(template), encoding="utf-8")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployment.app", description="Synthesise the templates.")
    parser.add_argument("stages", nargs="*", default=stage_names(), help="names of deployment/stages/*.yaml; all")
    parser.add_argument("--assembly", type=Path, metavar="FOLDER", help="keep what `cdk deploy --app FOLDER` reads")
    options = parser.parse_args(argv)
    if options.assembly is not None and len(options.stages) != 1:
        parser.error("--assembly needs one stage")
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
