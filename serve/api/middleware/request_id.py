"""The outermost layer: every request has an id and gets one answer.

What is always true:
- `scope["state"]["request_id"]` is set before anything else runs, and the answer carries it as `x-request-id` (where
  the server around the app adds that itself, as Ray does, it is left to it);
- an exception that nobody expected ends here: it is logged once, with the id, and answered as `internal_error`.
  A response that had already begun cannot be mended, so there the exception goes on and the server cuts the connection.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.problems import InvalidHeader, respond

_log = logging.getLogger(__name__)

MAX_REQUEST_ID_CHARS = 128
REQUEST_ID_HEADER = b"x-request-id"


class Edge:
    """ASGI middleware; see the head of the file."""

    def __init__(self, app: ASGIApp, *, answers_request_id: bool = True) -> None:
        self._app = app
        self._answers_request_id = answers_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        invalid: InvalidHeader | None = None
        try:
            request_id = request_id_of(scope["headers"])
        except InvalidHeader as error:
            request_id, invalid = uuid.uuid4().hex, error
        scope.setdefault("state", {})["request_id"] = request_id
        headers = [(REQUEST_ID_HEADER, request_id.encode("ascii"))] if self._answers_request_id else []
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if invalid is not None:
            await respond(invalid, request_id)(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise
            _log.exception("request %s failed", request_id)
            await respond(error, request_id)(scope, receive, send_with_id)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's own id, or a new one, from raw, lower-case headers. Raises InvalidHeader."""
    for name, value in headers:
        if name == REQUEST_ID_HEADER:
            request_id = value.decode("latin-1")
            if 0 < len(request_id) <= MAX_REQUEST_ID_CHARS and request_id.isascii() and request_id.isprintable():
                return request_id
            raise InvalidHeader(f"x-request-id must be 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters")
    return uuid.uuid4().hex
