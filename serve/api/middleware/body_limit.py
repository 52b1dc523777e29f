"""The limit on request bodies, in front of every door.

What is always true:
- a body that declares more than the limit is refused before a byte of it is asked for;
- any other body is counted as it comes, and at the first byte over the limit nothing more is handed to the app: at
  most the limit and one network chunk are ever held;
- after a refusal the connection closes, since what follows on it is the rest of that body.

Closing a socket while bytes lie unread in it resets it, and a reset can destroy the answer before the client reads it.
So the answer is sent whole first, and then what the client is still sending is thrown away for a moment (`_linger`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.problems import InvalidHeader, respond
from serve.core.errors import ServeError, TooLarge

LINGER_S = 1.0
"""Most that a refused client is listened to after its answer."""


class BodyLimit:
    """ASGI middleware; see the head of the file.

    Args:
        on_refused: called for a request that was refused before the app saw it.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, on_refused: Callable[[ServeError], None]) -> None:
        self._app = app
        self._max_bytes = max_body_bytes
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_declared(Headers(scope=scope).get("content-length"))
        except ServeError as error:
            self._on_refused(error)
            await self._refuse(error, scope, receive, send, more_to_come=True)
            return
        await self._count(scope, receive, send)

    def _check_declared(self, content_length: str | None) -> None:
        if content_length is None:
            return
        if not (content_length.isascii() and content_length.isdigit()):
            raise InvalidHeader("Content-Length must be a whole number of bytes")
        # The digits are counted first, since a number of thousands of digits is slow (and int refuses it).
        if len(content_length.lstrip("0")) > 18 or int(content_length) > self._max_bytes:
            raise self._too_large()

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0
        more_to_come = True
        exceeded: ServeError | None = None
        started = False

        async def receive_counted() -> Message:
            nonlocal num_bytes, more_to_come, exceeded
            if exceeded is not None:
                raise exceeded
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                more_to_come = message.get("more_body", False)
                if num_bytes > self._max_bytes:
                    exceeded = self._too_large()
                    raise exceeded
            return message

        async def send_unless_exceeded(message: Message) -> None:
            nonlocal started
            if exceeded is not None and not started:
                return  # whatever the app made of the error, the refusal below is the answer
            started = True
            await send(message)

        try:
            await self._app(scope, receive_counted, send_unless_exceeded)
        except Exception:
            if exceeded is None or started:
                raise
        if exceeded is not None and not started:
            await self._refuse(exceeded, scope, receive, send, more_to_come=more_to_come)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_bytes} bytes; send the rows in parts")

    async def _refuse(
        self, error: ServeError, scope: Scope, receive: Receive, send: Send, *, more_to_come: bool
    ) -> None:
        async def send_but_stay(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["more_body"] = True
            await send(message)

        request_id = scope["state"]["request_id"]
        await respond(error, request_id, {"connection": "close"})(scope, receive, send_but_stay)
        if more_to_come:
            await self._linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self, receive: Receive) -> None:
        left = self._max_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))
