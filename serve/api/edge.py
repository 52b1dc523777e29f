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

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.problems import InvalidHeader, respond

_log = logging.getLogger(__name__)

MAX_REQUEST_ID_CHARS = 128


class Edge:
    """ASGI middleware; see the head of the file."""

    def __init__(self, app: ASGIApp, *, answers_request_id: bool = True) -> None:
        self._app = app
        self._answers_request_id = answers_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        valid = given is None or _is_valid(given)
        request_id = given if given is not None and valid else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        headers = [(b"x-request-id", request_id.encode("ascii"))] if self._answers_request_id else []
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if not valid:
            error = InvalidHeader(f"x-request-id must be 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters")
            await respond(error, request_id)(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise
            _log.exception("request %s failed", request_id)
            await respond(error, request_id)(scope, receive, send_with_id)


def _is_valid(request_id: str) -> bool:
    return 0 < len(request_id) <= MAX_REQUEST_ID_CHARS and request_id.isascii() and request_id.isprintable()
