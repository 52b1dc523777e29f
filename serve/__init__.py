"""tabpfn-serve: a TabPFN inference server with dynamic batching."""

import tomllib
from importlib import metadata
from pathlib import Path


def _find_version() -> str:
    """Of the installation, or of the checkout from which an uninstalled package is run, or "unknown"."""
    try:
        return metadata.version("tabpfn-serve")
    except metadata.PackageNotFoundError:
        return _version_of_checkout(Path(__file__).parents[1] / "pyproject.toml")


def _version_of_checkout(file: Path) -> str:
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return "unknown"
    return str(project["version"]) if project.get("name") == "tabpfn-serve" else "unknown"


__version__ = _find_version()
