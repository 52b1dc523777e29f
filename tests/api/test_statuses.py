"""The table of errors is complete, and docs/errors.md says the same as the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from serve.api.statuses import (
    INTERNAL_ERROR,
    INTERNAL_STATUS,
    STATUSES,
    GrpcStatus,
    Status,
    public_error,
)
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
    known = {kind for kind in subclasses(ServeError) if kind.__module__.startswith("serve.")}
    # OutOfMemory and DeviceLost stay between engine and batcher.
    assert known - subclasses(StartupError) - {ServeError, OutOfMemory, DeviceLost} == set(STATUSES)
    codes = [kind.code for kind in STATUSES]
    assert len(set(codes)) == len(codes)


def documented() -> dict[str, Status]:
    text = (ROOT / "docs/errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| `(\w+)` \|", text, re.MULTILINE)
    found = {code: Status(int(http), GrpcStatus[grpc]) for code, http, grpc in rows}
    assert len(found) == len(rows), "a code is listed twice"
    return found


def codes_given_to_invalid_input() -> set[str]:
    """The literal code of every `InvalidInput(detail, code=...)` and `_Refused(detail, code)` of the server."""
    found = set()
    for path in (ROOT / "serve").rglob("*.py"):
        if path.name == "fake.py":
            continue  # no caller meets it
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                given += node.args[1:2] if node.func.id == "Refused" else []
                found |= {value.value for value in given if isinstance(value, ast.Constant)}
    return found


def test_the_codes_of_the_row_encoder_are_found() -> None:
    assert {"wrong_type", "unknown_column", "ragged_row"} <= codes_given_to_invalid_input()


def test_docs_list_exactly_the_codes_of_the_code_with_both_statuses() -> None:
    expected = {kind.code: status for kind, status in STATUSES.items()}
    expected[INTERNAL_ERROR] = INTERNAL_STATUS
    expected |= dict.fromkeys(codes_given_to_invalid_input(), STATUSES[InvalidInput])
    assert documented() == expected


def test_grpc_statuses_have_the_numbers_of_the_specification() -> None:
    """From https://grpc.io/docs/guides/status-codes/, in the order of their numbers from 0."""
    names = (  # noqa: SIM905
        "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
        "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
        "UNAUTHENTICATED"
    ).split()
    assert {status.name: status.value for status in GrpcStatus}.items() <= dict(
        zip(names, range(17), strict=True)
    ).items()


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Overloaded("full", retry_after_s=0.01), 1),
        (Overloaded("full", retry_after_s=2.0), 2),
        (Overloaded("full", retry_after_s=2.1), 3),
        (NotReady("starting"), 1),
        (Draining("stopping"), 1),
        (TooLarge("too many"), None),
    ],
)
def test_retry_after(error: ServeError, seconds: int | None) -> None:
    assert public_error(error).retry_after_s == seconds


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("CUDA error at /secret/path"), "engine_error"),
        (OutOfMemory("/secret/path"), "engine_error"),
        (InvalidModel("/secret/path is broken"), "internal_error"),
        (RuntimeError("/secret/path"), "internal_error"),
        (HTTPException(418, "/secret/path"), "internal_error"),
    ],
)
def test_nothing_internal_leaks(error: Exception, code: str) -> None:
    public = public_error(error)
    assert (public.status, public.code) == (INTERNAL_STATUS, code)
    assert "secret" not in public.detail


def test_a_subclass_has_its_parents_status() -> None:
    class Narrower(TooLarge):
        """Not in the table itself."""

    assert public_error(Narrower("x")).status == STATUSES[TooLarge]
