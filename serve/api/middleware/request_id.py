"""The outermost middleware before the router: each request has an id and gets one answer.

What is always true:
- `scope["state"]["request_id"]` is set before anything else runs, and the answer carries it as `x-request-id`, unless
  the server around the app adds it, as Ray does;
- an unexpected exception ends here: it is logged once, with the id, and the caller gets `internal_error`. After the
  answer has begun, the exception goes on, and the server closes the connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import InvalidHeader
from serve.api.request_headers import REQUEST_ID, new_request_id, read_request_id

_log = logging.getLogger(__name__)


class RequestId:
    """ASGI middleware; see the head of the file.

    Args:
        render: the response to an error of the request with this scope.
        answers_request_id: the answer's `x-request-id` is added here.
    """

    def __init__(
        self, app: ASGIApp, render: Callable[[BaseException, Scope], Response], *, answers_request_id: bool = True
    ) -> None:
        self._app = app
        self._render = render
        self._answers_request_id = answers_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; every scope but `http` passes unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        invalid: InvalidHeader | None = None
        try:
            request_id = read_request_id(scope["headers"])
        except InvalidHeader as error:
            request_id, invalid = new_request_id(), error
        scope.setdefault("state", {})["request_id"] = request_id
        headers = [(REQUEST_ID, request_id.encode("ascii"))] if self._answers_request_id else []
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if invalid is not None:
            await self._render(invalid, scope)(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if has_started:
                raise
            _log.exception("request %s failed", request_id)
            await self._render(error, scope)(scope, receive, send_with_id)
