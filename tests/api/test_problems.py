"""The table of errors is whole, and the documentation says the same as the code."""

from __future__ import annotations

import ast
import http
import json
import re
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from serve.api import problems
from serve.core.errors import (
    DeviceLost,
    Draining,
    EngineError,
    InvalidInput,
    InvalidModel,
    NotReady,
    OutOfMemory,
    Overloaded,
    ServeError,
    StartupError,
    TooLarge,
)

ROOT = Path(__file__).parents[2]


def subclasses(kind: type[ServeError]) -> set[type[ServeError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_every_error_that_may_reach_a_caller_has_a_status() -> None:
    ours = {kind for kind in subclasses(ServeError) if kind.__module__.startswith("serve.")}
    # OutOfMemory and DeviceLost are between engine and batcher alone.
    assert ours - subclasses(StartupError) - {ServeError, OutOfMemory, DeviceLost} == set(problems.STATUSES)
    codes = [kind.code for kind in problems.STATUSES]
    assert len(set(codes)) == len(codes)


def documented() -> dict[str, int]:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert len(dict(rows)) == len(rows), "a code is listed twice"
    return {code: int(status) for code, status in rows}


def codes_given_to_invalid_input() -> set[str]:
    """The literal code of every `InvalidInput(detail, code=...)` and `_Refused(detail, code)` of a server."""
    found = set()
    for path in (ROOT / "serve").rglob("*.py"):
        if path.name == "fake.py":
            continue  # no caller meets it
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                given += node.args[1:2] if node.func.id == "_Refused" else []
                found |= {value.value for value in given if isinstance(value, ast.Constant)}
    return found


def test_the_codes_of_the_row_encoder_are_found() -> None:
    assert {"wrong_type", "unknown_column", "ragged_row"} <= codes_given_to_invalid_input()


def test_docs_list_exactly_the_codes_of_the_code() -> None:
    expected = {kind.code: status for kind, status in problems.STATUSES.items()}
    expected[problems.INTERNAL_ERROR] = 500
    expected |= dict.fromkeys(codes_given_to_invalid_input(), problems.STATUSES[InvalidInput])
    assert documented() == expected


def test_a_problem_says_everything_once() -> None:
    response = problems.respond(InvalidInput("not a number", code="wrong_type", row=0, column="amount"), "abc")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.body) == {
        "type": "about:blank",
        "title": http.HTTPStatus(422).phrase,  # Python 3.13 has another
        "status": 422,
        "detail": "not a number",
        "code": "wrong_type",
        "request_id": "abc",
        "row": 0,
        "column": "amount",
    }


def test_no_place_where_there_is_none() -> None:
    body = json.loads(problems.respond(TooLarge("too many"), "abc").body)
    assert "row" not in body
    assert "column" not in body


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Overloaded("full", retry_after_s=0.01), "1"),
        (Overloaded("full", retry_after_s=2.0), "2"),
        (Overloaded("full", retry_after_s=2.1), "3"),
        (NotReady("starting"), "1"),
        (Draining("stopping"), "1"),
        (TooLarge("too many"), None),
    ],
)
def test_retry_after(error: ServeError, seconds: str | None) -> None:
    assert problems.respond(error, "abc").headers.get("retry-after") == seconds


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("CUDA error at /secret/path"), "engine_error"),
        (InvalidModel("/secret/path is broken"), "internal_error"),
        (RuntimeError("/secret/path"), "internal_error"),
        (HTTPException(418, "/secret/path"), "internal_error"),
    ],
)
def test_nothing_internal_leaks(error: Exception, code: str) -> None:
    response = problems.respond(error, "abc")
    assert response.status_code == 500
    assert json.loads(response.body)["code"] == code
    assert b"secret" not in response.body


def test_a_subclass_has_its_parents_status() -> None:
    class Narrower(TooLarge):
        """Not in the table itself."""

    assert problems.describe(Narrower("x"), "abc").status == 413
