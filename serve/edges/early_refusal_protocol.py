"""uvicorn's HTTP protocol, which also answers early refusals: those that need the headers alone.

uvicorn builds a scope, a cycle and a task for each request before it calls the app. In an overload that is most of the
cost of a refusal (docs/decisions/001-cost-of-the-front.md), so the early refusal is asked first. uvicorn never sees a
refused request. Its body is dropped as it arrives, then the answer is written, and the connection stays open.

What is always true:
- Answers leave in the order of their requests. While one request is unanswered, the next ones are left to uvicorn.
- Flow control is left to uvicorn. Nothing is written to a caller that reads slowly.
- The end of a connection is left to uvicorn too: keep-alive timer, `Connection: close`, HTTP/1.0, and a shutdown, in
  which a request that is still arriving gets its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

EarlyRefusal = Callable[[str, str, list[tuple[bytes, bytes]]], Response | None]
"""(method, target, raw headers) -> the response of an early refusal; None for a request that is to be read."""


class EarlyRefusalProtocol(HttpToolsProtocol):
    """One connection; see the head of the file."""

    def __init__(self, *arguments: Any, early_refusal: EarlyRefusal, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._early_refusal = early_refusal
        self._refusal: Response | None = None
        """The answer to the refused request whose body is arriving."""
        self._is_last = False
        """The connection closes after that answer."""

    def on_headers_complete(self) -> None:
        if self._is_free():
            self._refusal = self._early_refusal(
                self.parser.get_method().decode("ascii"), self.url.decode("latin-1"), self.headers
            )
        if self._refusal is None:
            super().on_headers_complete()
        else:
            self._is_last = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refusal is None:
            super().on_message_complete()
            return
        refusal, self._refusal = self._refusal, None
        self.transport.write(self._written(refusal))
        if self._is_last:
            self.transport.close()
        self.on_response_complete()

    def shutdown(self) -> None:
        if self._refusal is None:
            super().shutdown()
        else:
            self._is_last = True

    def _is_free(self) -> bool:
        """No earlier request of this connection waits for its answer."""
        has_answered = self.cycle is None or self.cycle.response_complete
        return has_answered and not self.flow.write_paused and not self.transport.is_closing()

    def _written(self, refusal: Response) -> bytes:
        parts = [STATUS_LINE[refusal.status_code]]
        for name, value in (*self.server_state.default_headers, *refusal.raw_headers):
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: close\r\n\r\n" if self._is_last else b"\r\n")
        return b"".join(parts) + bytes(refusal.body)
