"""What arrives on a request's connection: its body, up to a limit, and then the disconnect of its caller.

`LimitedBody` is the body of one request; `BodyLimit` applies the limit as a middleware before the router.

What is always true:
- a body that declares more than the limit is refused before a byte of it is requested;
- any other body is counted as it arrives. At the first byte over the limit, nothing more is handed on: the server
  never holds more than the limit and one network chunk;
- after a refusal the connection closes, because the rest of that body would follow on it.

Closing a socket while unread bytes lie in it resets it, and a reset can destroy the answer before the client has read
it. So the answer is sent whole first. Then the server discards what the client still sends, for `LINGER_S` at most.

While a request waits for its batch, nothing else reads its connection. `run_while_connected` waits there for the
disconnect and then cancels the work, so that the queue skips the rows. Rows that are already on the device finish
without a reader.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import InvalidHeader
from serve.core.errors import ServeError, TooLarge

_T = TypeVar("_T")

LINGER_S = 1.0
"""Longest time that the server discards what a refused client still sends."""


class LimitedBody:
    """The body of one request: its `receive` is that of ASGI, and raises TooLarge over the limit.

    Attributes:
        refusal: the error that the body was refused with; None while it is within the limit.
    """

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.refusal: ServeError | None = None
        self._receive = receive
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._has_more = True

    def check_declared(self, headers: Headers) -> None:
        """Raise InvalidHeader or TooLarge for a `Content-Length` that is no number, or over the limit."""
        length = headers.get("content-length")
        if length is None:
            return
        if not (length.isascii() and length.isdigit()):
            self.refusal = InvalidHeader("Content-Length must be a whole number of bytes")
        # The digits are counted first, because `int` is slow on thousands of digits and then refuses them.
        elif len(length.lstrip("0")) > 18 or int(length) > self._max_bytes:
            self.refusal = self._too_large()
        if self.refusal is not None:
            raise self.refusal

    async def receive(self) -> Message:
        """The next message. Raises TooLarge at the first byte over the limit, and from then on."""
        if self.refusal is not None:
            raise self.refusal
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._has_more = message.get("more_body", False)
            if self._num_bytes > self._max_bytes:
                self.refusal = self._too_large()
                raise self.refusal
        return message

    async def read(self) -> bytes:
        """The whole body. Raises TooLarge, and ClientDisconnect where the caller goes first."""
        parts = []
        while self._has_more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def refuse(self, response: Response, scope: Scope, send: Send) -> None:
        """Send the response to a refused body, discard what still arrives, and let the connection close."""

        async def send_without_end(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["more_body"] = True
            await send(message)

        response.headers["connection"] = "close"
        await response(scope, self._receive, send_without_end)
        if self._has_more:
            await self._linger()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_bytes} bytes; send the rows in several requests")

    async def _linger(self) -> None:
        left = self._max_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))


class BodyLimit:
    """ASGI middleware for the requests that go to the router.

    Args:
        render: the response to an error of the request with this scope.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, render: Callable[[BaseException, Scope], Response]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; every scope but `http` passes unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = LimitedBody(receive, self._max_bytes)
        try:
            body.check_declared(Headers(scope=scope))
        except ServeError as error:
            await body.refuse(self._render(error, scope), scope, send)
        else:
            await self._serve(body, scope, send)

    async def _serve(self, body: LimitedBody, scope: Scope, send: Send) -> None:
        has_started = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal has_started
            if body.refusal is not None and not has_started:
                return  # the app's own answer to the error; the refusal below takes its place
            has_started = True
            await send(message)

        try:
            await self._app(scope, body.receive, send_unless_refused)
        except Exception:
            if body.refusal is None or has_started:
                raise
        if body.refusal is not None and not has_started:
            await body.refuse(self._render(body.refusal, scope), scope, send)


async def run_while_connected(work: Awaitable[_T], receive: Receive) -> _T:
    """The result of `work`, whose request body must have been read whole. Raises ClientDisconnect.

    The work runs in the calling task, and a disconnect cancels that task: a second task for each request costs more.
    """
    caller = asyncio.current_task()
    assert caller is not None
    watch = asyncio.ensure_future(_disconnected(receive))
    waiting, left = True, False

    def leave(_: object) -> None:
        nonlocal left
        if waiting:
            left = True
            caller.cancel()

    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and not caller.uncancel():  # no other cancellation was requested
            raise ClientDisconnect from watch.exception()
        raise
    finally:
        waiting = False
        watch.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
