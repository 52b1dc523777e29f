"""The package knows its version, and imports where nothing was installed: on a machine without a package registry."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import serve

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_that_of_the_installation() -> None:
    assert serve.__version__ == metadata.version("tabpfn-serve")


def uninstalled_version(folder: Path) -> str:
    """Of the package in a folder, by a Python that sees no site-packages and so no metadata."""
    (folder / "serve").mkdir()
    shutil.copy(ROOT / "serve" / "__init__.py", folder / "serve")
    command = [sys.executable, "-S", "-c", "import serve; print(serve.__version__)"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_without_metadata_it_is_that_of_the_checkout(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert uninstalled_version(tmp_path) == serve.__version__


@pytest.mark.parametrize(
    "pyproject", [None, "[project]\nname = 'other'\nversion = '9'\n", "[tool.ruff]\n", "no TOML", "[project]\n"]
)
def test_without_either_it_is_unknown(tmp_path: Path, pyproject: str | None) -> None:
    if pyproject is not None:
        (tmp_path / "pyproject.toml").write_text(pyproject)
    assert uninstalled_version(tmp_path) == "unknown"
