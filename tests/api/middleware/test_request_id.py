"""Request ids, and what becomes of an exception that nobody expected."""

from __future__ import annotations

import logging

import httpx
import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from serve.api.middleware.request_id import RequestId
from serve.api.native.problems import respond


def render(error: BaseException, scope: Scope) -> Response:
    return respond(error, scope["state"]["request_id"])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(scope["state"]["request_id"])(scope, receive, send)


async def ask(app: RequestId, headers: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get("/", headers=headers)


@pytest.mark.parametrize("request_id", ["a", "order 17/3", "x" * 128])
async def test_a_given_id_is_used_and_echoed(request_id: str) -> None:
    answer = await ask(RequestId(echo, render), {"x-request-id": request_id})
    assert answer.text == answer.headers["x-request-id"] == request_id


async def test_ids_are_made_where_none_is_given() -> None:
    answers = [await ask(RequestId(echo, render)) for _ in range(2)]
    assert all(len(answer.text) == 32 and answer.text == answer.headers["x-request-id"] for answer in answers)
    assert answers[0].text != answers[1].text


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a\tb", "caf\xe9"])
async def test_a_bad_id_is_refused_and_not_echoed(request_id: str) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(RequestId(echo, render)), base_url="http://test"
    ) as client:
        answer = await client.get("/", headers=[(b"x-request-id", request_id.encode("latin-1"))])
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_header"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] != request_id


async def test_an_unexpected_exception_is_logged_once_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("the password is hunter2")

    with caplog.at_level(logging.DEBUG):
        answer = await ask(RequestId(broken, render), {"x-request-id": "r1"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert "hunter2" not in answer.text
    [record] = [record for record in caplog.records if record.name.startswith("serve")]
    assert "r1" in record.getMessage()
    assert record.exc_info is not None


async def test_an_exception_after_the_answer_began_goes_on() -> None:
    async def breaks_late(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        await ask(RequestId(breaks_late, render))
