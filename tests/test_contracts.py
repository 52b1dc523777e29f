"""A new file at any place of `serve/` that imports what it must not fails `make lint`.

Two copies of the packages are linted as `make lint` does. One is unchanged. The other has a new file in every folder,
which imports every guarded package. Each contract has to name each file that breaks it, and no other.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("serve", "benchmarks", "training", "deployment")
NEW_FILE = "new_file"
NEW_FOLDER = "new_folder"

CONTRACTS = {
    "nobody but the Ray edge imports ray": (["ray"], []),
    "nobody but doors and edges imports fastapi, starlette and uvicorn": (
        ["fastapi", "starlette", "uvicorn"],
        [
            *(("serve.api", name) for name in ("fastapi", "starlette")),
            *(("serve.edges", name) for name in ("starlette", "uvicorn")),
        ],
    ),
    "nobody but the engine imports torch, tabpfn and pandas": (
        ["torch", "tabpfn", "pandas"],
        [("serve.engine", name) for name in ("torch", "tabpfn", "pandas")],
    ),
    "nobody but the S3 store imports boto3": (["boto3", "botocore", "s3transfer"], []),
    "nobody but the engine's estimators imports pickle and joblib": (
        ["pickle", "joblib"],
        [("serve.engine.estimators", name) for name in ("pickle", "joblib")],
    ),
    "nobody imports grpc yet": (["grpc"], []),
}
"""Name of a contract: the packages that it guards, and (folder, package) where a new file may import one of them."""

LAYERS = "imports go one way"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def copy_of_the_packages(folder: Path) -> Path:
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.py"):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def folders_of(root: Path) -> list[Path]:
    return sorted(init.parent for init in (root / "serve").rglob("__init__.py"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return lint(copy_of_the_packages(tmp_path_factory.mktemp("clean")))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy with a new file in every folder, and with a new folder; and the import names of the new files."""
    root = copy_of_the_packages(tmp_path_factory.mktemp("dirty"))
    (root / "serve" / NEW_FOLDER).mkdir()
    (root / "serve" / NEW_FOLDER / "__init__.py").touch()
    imports = [f"import {package}\n" for packages, _ in CONTRACTS.values() for package in packages]
    for folder in folders_of(root):
        (folder / f"{NEW_FILE}.py").write_text("".join(imports))
    (root / "serve" / "core" / f"{NEW_FILE}.py").write_text("".join([*imports, "import serve.batching\n"]))
    names = [".".join((folder / NEW_FILE).relative_to(root).parts) for folder in folders_of(root)]
    return root, names


@pytest.fixture(scope="module")
def dirty(places: tuple[Path, list[str]]) -> subprocess.CompletedProcess[str]:
    return lint(places[0])


def section(output: str, contract: str) -> str:
    """What the linter says of one broken contract."""
    _, _, broken = output.partition("Broken contracts")
    _, _, text = broken.partition(f"\n{contract}\n---")
    return re.split(r"\n[^\n]+\n-{4,}\n", text)[0]


def test_the_packages_keep_every_contract(clean: subprocess.CompletedProcess[str]) -> None:
    assert clean.returncode == 0, clean.stdout
    for contract in (*CONTRACTS, LAYERS):
        assert f"{contract} KEPT" in clean.stdout


def test_new_files_fail_the_lint(dirty: subprocess.CompletedProcess[str]) -> None:
    assert dirty.returncode == 1
    for contract in (*CONTRACTS, LAYERS):
        assert f"{contract} BROKEN" in dirty.stdout


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_contract_names_every_new_file_that_breaks_it(
    contract: str, places: tuple[Path, list[str]], dirty: subprocess.CompletedProcess[str]
) -> None:
    packages, allowed = CONTRACTS[contract]
    _, files = places
    assert len(files) > 20
    expected = {
        (file, package)
        for file in files
        for package in packages
        if not any(file.startswith(f"{folder}.") and package == name for folder, name in allowed)
    }
    found = set(re.findall(rf"(\S+\.{NEW_FILE}) -> (\w+) \(l\.\d+\)", section(dirty.stdout, contract)))
    assert found == expected


def test_a_new_folder_needs_a_place_among_the_layers(dirty: subprocess.CompletedProcess[str]) -> None:
    assert NEW_FOLDER in section(dirty.stdout, LAYERS)


def test_a_layer_imports_nothing_above_it(dirty: subprocess.CompletedProcess[str]) -> None:
    assert re.search(rf"serve\.core\.{NEW_FILE} -> serve\.batching", section(dirty.stdout, LAYERS))
