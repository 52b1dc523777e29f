"""The peers' programs find what they import of this project; their frameworks are installed elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.machine import ROOT

PROGRAMS = sorted((ROOT / "benchmarks" / "peers" / "servers").glob("*_server.py"))


def own_imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import from this project, also of those within functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("serve", "benchmarks"):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_what_a_peer_imports_of_this_project_is_there(program: Path) -> None:
    found = list(own_imports(program.read_text(encoding="utf-8")))
    assert found
    for module, name in found:
        # as `from module import name` does, where the name may be a module itself
        assert hasattr(__import__(module, fromlist=[name]), name), f"{module} has no {name}"
