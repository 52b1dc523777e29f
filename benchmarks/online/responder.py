"""A server that does nothing but answer: `python -m benchmarks.online.responder` prints its port and serves on.

Every answer has the shape of the native protocol and is the same.
"""

from __future__ import annotations

import asyncio
import json
from typing import cast

import httptools
import uvloop

_ANSWER = {
    "model": "fraud",
    "version": "1",
    "classes": ["0", "1"],
    "predictions": [{"label": "0", "probabilities": [0.98, 0.02]}],
    "request_id": "0" * 32,
    "batch_rows": 1,
    "timing_ms": {"queue": 0.0, "compute": 0.0, "total": 0.0},
}


def _answer() -> bytes:
    body = json.dumps(_ANSWER).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


class Responder(asyncio.Protocol):
    """Answers every request of one connection at once."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport has the methods, not the base class

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of each request."""
        assert self._transport is not None
        self._transport.write(self._answer)


async def serve() -> None:
    """Listen on a free port of the loopback, print the port, and answer until the process is stopped."""
    answer = _answer()
    server = await asyncio.get_running_loop().create_server(lambda: Responder(answer), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
