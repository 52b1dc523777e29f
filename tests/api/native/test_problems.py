"""The error format of the native door."""

from __future__ import annotations

import http
import json

import pytest

from serve.api.native.problems import respond
from serve.core.errors import Draining, EngineError, InvalidInput, Overloaded, ServeError, TooLarge


def test_a_problem_says_everything_once() -> None:
    response = respond(InvalidInput("not a number", code="wrong_type", row=0, column="amount"), "abc")
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
    body = json.loads(respond(TooLarge("too many"), "abc").body)
    assert "row" not in body
    assert "column" not in body


@pytest.mark.parametrize(
    ("error", "seconds"), [(Overloaded("full", retry_after_s=2.1), "3"), (Draining("x"), "1"), (TooLarge("x"), None)]
)
def test_retry_after(error: ServeError, seconds: str | None) -> None:
    assert respond(error, "abc").headers.get("retry-after") == seconds


@pytest.mark.parametrize("error", [EngineError("CUDA error at /secret/path"), RuntimeError("/secret/path")])
def test_nothing_internal_leaks(error: Exception) -> None:
    response = respond(error, "abc")
    assert response.status_code == 500
    assert b"secret" not in response.body
