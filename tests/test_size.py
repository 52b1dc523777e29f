"""Files and functions of `serve/` stay short: a file has one concern, a function fits on a screen."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "serve").rglob("*.py"))
MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 40
"""From the signature to the end, docstring included, decorators not."""


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def long_functions(source: str) -> list[str]:
    """`name: lines` of each function that is too long; a nested function counts alone too."""
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [f"{node.name}: {lines_of(node)}" for node in functions if lines_of(node) > MAX_FUNCTION_LINES]


def test_no_file_is_too_long() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert len(lengths) > 50
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    found = {str(file.relative_to(ROOT)): long_functions(file.read_text(encoding="utf-8")) for file in FILES}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_the_check_measures_from_the_signature_to_the_end() -> None:
    body = "    pass\n" * (MAX_FUNCTION_LINES - 1)
    assert long_functions(f"@staticmethod\ndef fits():\n{body}\n\n") == []
    assert long_functions(f"async def exceeds():\n{body}    pass\n") == [f"exceeds: {MAX_FUNCTION_LINES + 1}"]
