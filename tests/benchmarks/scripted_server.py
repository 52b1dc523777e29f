"""A small HTTP server under the test's control; its own reading of HTTP, so that the client is not judged by itself."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Request:
    """As the server read it."""

    method: str
    path: str
    body: bytes
    head: str = ""


Handler = Callable[[Request], Awaitable[Answer]]


@dataclass
class ScriptedServer:
    """Calls `handler(request)` for each request; it answers (status, JSON), or bytes sent as they are."""

    handler: Handler
    num_connections: int = 0
    num_requests: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        try:
            while True:
                await self._answer_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        lengths = [line for line in head.split("\r\n") if line.lower().startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0].split(":")[1])) if lengths else b""
        self.num_requests += 1
        status, answer = await self.handler(Request(method, path, body, head))
        if status == 0:
            raise ConnectionError("the script hangs up")
        if isinstance(answer, bytes):
            writer.write(answer)
        else:
            content = json.dumps(answer).encode()
            writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


MODEL = {
    "name": "fraud",
    "version": "1",
    "task": "classification",
    "classes": ["0", "1"],
    "inputs": [{"name": "amount", "kind": "number"}, {"name": "category", "kind": "category"}],
    "example": {"amount": 120.0, "category": "fuel"},
}


def documented_answer(body: bytes, batch_rows: int = 4) -> dict[str, Any]:
    """The native door's answer; the probability is a function of the record's amount."""
    records = json.loads(body)["records"]
    shares = [1 / (1 + math.exp(-record["amount"] / 100)) for record in records]
    return {
        "model": "fraud",
        "version": "1",
        "classes": ["0", "1"],
        "predictions": [{"label": "0", "probabilities": [1 - share, share]} for share in shares],
        "request_id": "r",
        "batch_rows": batch_rows,
        "timing_ms": {"queue": 1.0, "compute": 3.0, "total": 4.5},
    }


async def fraud_model(request: Request) -> Answer:
    """A model server without faults."""
    if request.method == "GET":
        known = {"/v1/models/fraud": MODEL, "/v1/models": {"models": [{"name": "fraud"}]}}
        return (200, known[request.path]) if request.path in known else (404, {"code": "unknown_model"})
    return 200, documented_answer(request.body)


StartServer = Callable[[Handler], Awaitable[ScriptedServer]]
