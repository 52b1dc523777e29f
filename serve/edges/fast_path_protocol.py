"""uvicorn's HTTP protocol, with a fast path for predictions beside ASGI (`api/fast_path.py`).

uvicorn builds a scope, a cycle and a task for each request before it calls the app. A request on the fast path does
without: its body is collected here, and its answer is written when the batcher hands it out. Every other request is
uvicorn's, on the same connection.

What is always true:
- Answers leave in the order of their requests. While one request is unanswered, the next ones are left to uvicorn,
  which queues them and reads no further.
- Flow control is left to uvicorn. A caller that reads slowly has its requests served by ASGI, which waits for it.
- The end of a connection is left to uvicorn too: keep-alive, `Connection: close`, HTTP/1.0, and a shutdown, in which a
  request that is still arriving gets its answer. For this, `cycle` stands where uvicorn expects the cycle of ASGI.
"""

from __future__ import annotations

from typing import Any, cast

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from serve.api.fast_path import FastPath, FastRequest
from serve.edges.guarded_protocol import GuardedProtocol


class _Unheard:
    """Stands for the event that wakes an ASGI app, where there is none."""

    def set(self) -> None:
        """Nobody waits."""


class _FastCycle:
    """The state of a request on the fast path, under the names by which uvicorn reads and sets it."""

    message_event = _Unheard()
    body = b""
    response_started = False

    def __init__(self) -> None:
        self.response_complete = True
        self.disconnected = False
        self.keep_alive = True


class Outbox:
    """Writes the answers of all connections of one server, those of a batch one right behind the other.

    A write wakes a caller that sleeps, and the kernel does so within the write. Answers that follow each other closely
    find their callers awake: with 256 callers one process answers about a tenth more requests.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[FastPathProtocol, bytes, bytes]] = []

    def put(self, connection: FastPathProtocol, head: bytes, body: bytes) -> None:
        """Write an answer in the next turn of the event loop."""
        if not self._waiting:
            connection.loop.call_soon(self._flush)
        self._waiting.append((connection, head, body))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection, head, body in waiting:
            connection.write_answer(head, body)


class FastPathProtocol(GuardedProtocol):
    """One connection; see the head of the file."""

    def __init__(self, *arguments: Any, fast_path: FastPath, outbox: Outbox, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fast_path = fast_path
        self._outbox = outbox
        self._is_in_parser = False
        """An answer that comes now is written now, so that a request behind it can take the fast path too."""
        self._fast_cycle = _FastCycle()
        self._request: FastRequest | None = None
        """The request on the fast path that has no answer yet."""
        self._is_arriving = False
        """The parser is within its body."""
        self._body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_arriving and self._request is not None:
            self._request.is_prechecked = False

    def on_message_begin(self) -> None:
        # uvicorn's own makes the scope of ASGI, which few requests need: `_begin_ordinary`.
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_free():
            parser = self.parser
            request = self._fast_path.begin(
                parser.get_method().decode("ascii"), self.url.decode("latin-1"), self.headers
            )
            if request is not None:
                cycle = self._fast_cycle
                cycle.response_complete = False
                cycle.keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
                self.cycle = cast(RequestResponseCycle, cycle)
                self._request, self._is_arriving = request, True
                return
        self._begin_ordinary()

    def _begin_ordinary(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.scope["headers"] = headers
        self.expect_100_continue = any(n == b"expect" and value.lower() == b"100-continue" for n, value in headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_arriving:
            super().on_body(body)
        elif self._request is not None and self._request.refusal is None:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._is_arriving:
            super().on_message_complete()
            return
        self._is_arriving = False
        parts, self._body = self._body, []
        request = self._request
        if request is None:
            return
        self._is_in_parser = True
        if request.refusal is not None:
            self._respond(request.refusal)
        else:
            self._fast_path.submit(request, parts[0] if len(parts) == 1 else b"".join(parts), self._respond)
        self._is_in_parser = False

    def connection_lost(self, exc: Exception | None) -> None:
        request, self._request = self._request, None
        if request is not None:
            self._fast_path.leave(request)
        super().connection_lost(exc)

    def _is_free(self) -> bool:
        """No earlier request of this connection waits for its answer."""
        has_answered = self.cycle is None or self.cycle.response_complete
        return has_answered and not self.flow.write_paused and not self.transport.is_closing()

    def _respond(self, response: Response) -> None:
        self._request = None
        lines = [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *response.raw_headers)]
        head, body = b"".join([STATUS_LINE[response.status_code], *lines]), cast(bytes, response.body)
        if self._is_in_parser:
            self.write_answer(head, body)
        else:
            self._outbox.put(self, head, body)

    def write_answer(self, head: bytes, body: bytes) -> None:
        """Write the answer to the request on the fast path: status line with headers, and body."""
        cycle, transport = self._fast_cycle, self.transport
        cycle.response_complete = True
        if transport.is_closing():
            return
        transport.write(b"".join([head, b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", body]))
        if not cycle.keep_alive:
            transport.close()
        self.on_response_complete()
