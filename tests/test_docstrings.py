"""Every public class, function and method of the packages named below has a docstring.

A method needs none of its own where the class that it overrides has one for it. A class that has all members of a
documented Protocol overrides it too, without inheriting from it.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = [
    "deployment",
    "serve.api",
    "serve.batching",
    "serve.core",
    "serve.replica",
    "serve.store",
    "serve.telemetry",
]
"""Packages and modules, by import name. Those that are named are checked with everything below them."""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_has_a_docstring(package: str) -> None:
    missing = list(undocumented(package, ROOT))
    assert missing == [], f"{len(missing)} without a docstring"


def undocumented(package: str, root: Path) -> Iterator[str]:
    """`module.Class.method` of each public definition without a docstring."""
    place = root / Path(*package.split("."))
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    for file in files:
        module = module_name(file, root)
        for names, node in public_definitions(ast.parse(file.read_text(encoding="utf-8")), ()):
            if not ast.get_docstring(node) and not overrides_documented(module, names, root):
                yield f"{module}.{'.'.join(names)}"


def public_definitions(tree: ast.AST, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Definition]]:
    """Public classes and functions of a module, and the public members of public classes; no nested functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try):
            yield from public_definitions(node, above)
        elif isinstance(node, Definition) and not node.name.startswith("_") and not is_variant(node):
            yield (*above, node.name), node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, (*above, node.name))


def is_variant(node: Definition) -> bool:
    """Whether the node is an overload or the setter of a property; their first definition has the docstring."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(text.endswith((".setter", ".deleter")) or text.split(".")[-1] == "overload" for text in decorators)


def overrides_documented(module: str, names: tuple[str, ...], root: Path) -> bool:
    """Whether `names` is a method whose base class, or whose Protocol, has a docstring for it."""
    if len(names) < 2:
        return False
    found: Any = importlib.import_module(module)
    for name in names[:-1]:
        found = getattr(found, name)
    bases = [*found.__mro__[1:], *(p for p in protocols(module.partition(".")[0], root) if has_all_members(found, p))]
    return any(inspect.getdoc(vars(base)[names[-1]]) for base in bases if names[-1] in vars(base))


@cache
def protocols(package: str, root: Path) -> list[type]:
    """The Protocol classes that a top-level package defines."""
    return [
        getattr(importlib.import_module(module_name(file, root)), node.name)
        for file in sorted((root / package).rglob("*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    ]


def module_name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def has_all_members(found: type, protocol: type) -> bool:
    names = [name for name in vars(protocol) if not name.startswith("_")]
    return bool(names) and all(hasattr(found, name) for name in names)


# --- the check itself -----------------------------------------------------------------------------------------------

EXAMPLE = '''
from typing import Protocol

class Spoken(Protocol):
    """A documented protocol."""
    def say(self) -> str:
        """The words."""
    def shout(self) -> str: ...

class Person:
    """Has all members of Spoken; `shout` has no docstring there."""
    def say(self) -> str: ...
    def shout(self) -> str: ...

class Child(Person):
    """Inherits."""
    def say(self) -> str: ...

class Bare:
    @property
    def size(self) -> int: ...
    @size.setter
    def size(self, value: int) -> None: ...
    def _private(self) -> None: ...

class _Hidden:
    def method(self) -> None: ...

def function() -> None:
    def inner() -> None: ...
'''


def test_the_check_finds_what_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "docstring_example"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A package."""\n')
    (folder / "people.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(undocumented("docstring_example", tmp_path)) == [
        f"docstring_example.people.{name}" for name in ("Spoken.shout", "Person.shout", "Bare", "Bare.size", "function")
    ]
