"""Requests that are no predictions: a front sends them to the core whole, and the core's app answers them.

So each route has one implementation, and `/metrics` of any front shows the whole replica.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.request_headers import REQUEST_ID
from serve.edges.fronts.messages import Forward, Forwarded

_log = logging.getLogger(__name__)


class Answering:
    """The core's side: runs its app on forwarded requests. Lives on its event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, forward: Forward, send: Callable[[Forwarded], None]) -> None:
        """Send the app's answer, later."""
        task = asyncio.get_running_loop().create_task(self._answer(forward, send))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, forward: Forward, send: Callable[[Forwarded], None]) -> None:
        has_body = True
        status: int | None = None
        headers: list[tuple[bytes, bytes]] = []
        body: list[bytes] = []

        async def receive() -> Message:
            nonlocal has_body
            if has_body:
                has_body = False
                return {"type": "http.request", "body": forward.body, "more_body": False}
            return await asyncio.Future()  # the front watches the connection

        async def collect(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers.extend((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
            elif message["type"] == "http.response.body":
                body.append(message.get("body", b""))

        try:
            await self._app(_scope(forward), receive, collect)
        except Exception:
            _log.exception("a forwarded request failed: %s %s", forward.method, forward.path)
            status = None
        send(Forwarded(forward.number, status, headers, b"".join(body)))


class Forwarder:
    """A front's side: an ASGI app. Lives on its event loop.

    Args:
        send: sends a message to the core.
    """

    def __init__(self, send: Callable[[Forward], None]) -> None:
        self._send = send
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Forwarded]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as the core does. The middleware around this has set its id."""
        body = await _read(receive)
        if body is None:
            return  # the caller has left
        number = next(self._numbers) % 2**32
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(_forward(number, scope, body))
            forwarded = await answer
        finally:
            del self._waiting[number]
        if forwarded.status is None:
            raise RuntimeError("the core failed on a forwarded request; its log says why")
        await send({"type": "http.response.start", "status": forwarded.status, "headers": forwarded.headers})
        await send({"type": "http.response.body", "body": forwarded.body})

    def settle(self, forwarded: Forwarded) -> None:
        """The core has answered; nothing where the caller has left."""
        answer = self._waiting.get(forwarded.number)
        if answer is not None and not answer.done():
            answer.set_result(forwarded)


async def _read(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _forward(number: int, scope: Scope, body: bytes) -> Forward:
    server, client = scope.get("server"), scope.get("client")
    headers = [header for header in scope["headers"] if header[0] != REQUEST_ID]
    headers.append((REQUEST_ID, scope["state"]["request_id"].encode("ascii")))
    return Forward(
        number,
        scope["method"],
        scope["path"],
        scope.get("raw_path") or b"",
        scope.get("query_string", b""),
        scope.get("root_path", ""),
        scope.get("scheme", "http"),
        scope.get("http_version", "1.1"),
        None if server is None else (server[0], server[1]),
        None if client is None else (client[0], client[1]),
        headers,
        body,
    )


def _scope(forward: Forward) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": forward.method,
        "path": forward.path,
        "raw_path": forward.raw_path,
        "query_string": forward.query_string,
        "root_path": forward.root_path,
        "scheme": forward.scheme,
        "http_version": forward.http_version,
        "server": forward.server,
        "client": forward.client,
        "headers": forward.headers,
        "state": {},
    }
