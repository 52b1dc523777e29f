"""An HTTP/1.1 keep-alive client for requests that were encoded before, at a cost far below the server's.

What is always true:
- every submitted exchange ends exactly once: with an answer, or with an `error` in words;
- nothing is sent twice: a lost connection is an error of the result, and no request is retried;
- a request that finds no free connection opens another one, up to `max_connections`. Only beyond that number does it
  wait,
  and the wait shows as send lag;
- times are those of `time.monotonic`. The body of an answer is kept as bytes and read after the run.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import cast

import httptools


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its outcome. `due` is the time at which it was to be sent; the latency counts from there."""

    due: float
    request: bytes
    record: int = -1
    sent: float = math.nan
    finished: float = math.nan
    status: int = 0
    body: bytes = b""
    error: str | None = None
    answered: asyncio.Future[None] | None = field(default=None, repr=False)
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, with an answer or an error."""
        return not math.isnan(self.finished)

    @property
    def is_sent(self) -> bool:
        """Whether it was written to a socket."""
        return not math.isnan(self.sent)

    @property
    def latency_ms(self) -> float:
        """From the due time to the end."""
        return 1000 * (self.finished - self.due)

    @property
    def send_lag_ms(self) -> float:
        """From the due time to the write on the socket."""
        return 1000 * (self.sent - self.due)


class Client:
    """A pool of connections to one server.

    The most recently used connection goes first, so that the server may close idle ones.
    """

    def __init__(
        self, host: str, port: int, *, connections: int = 1, max_connections: int = 1024, timeout_s: float = 30.0
    ) -> None:
        self.num_opened = 0
        self._address = (host, port)
        self._num_first = connections
        self._max_connections = max(connections, max_connections)
        self._timeout_s = timeout_s
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[Exchange] = deque()
        self._opening: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._num_ongoing = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._closed = False

    async def open(self) -> None:
        """Open the first connections. Raises OSError where not even one can be opened."""
        host, port = self._address
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for number, (*_, address) in enumerate(found, start=1):
            self._address = str(address[0]), int(address[1])  # looked up once, not for every connection
            try:
                await self._connect(Connection(self))
                break
            except OSError:
                if number == len(found):
                    raise
        await asyncio.gather(
            *(self._connect(Connection(self)) for _ in range(self._num_first - 1)), return_exceptions=True
        )

    async def ask(self, request: bytes, record: int = -1) -> Exchange:
        """Send one request now and wait for its end."""
        exchange = Exchange(due=time.monotonic(), request=request, record=record)
        exchange.answered = asyncio.get_running_loop().create_future()
        self.submit(exchange)
        await exchange.answered
        return exchange

    def submit(self, exchange: Exchange) -> None:
        """Send, or queue for the next free connection; returns at once. The timeout counts from `due`."""
        self._num_ongoing += 1
        self._drained.clear()
        left_s = max(0.0, exchange.due + self._timeout_s - time.monotonic())
        exchange.timer = asyncio.get_running_loop().call_later(left_s, self._expire, exchange)
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                connection.send(exchange)
                return
        self._waiting.append(exchange)
        self._grow()

    async def drain(self) -> None:
        """Wait until every submitted exchange has ended."""
        await self._drained.wait()

    async def close(self) -> None:
        """Close all connections; exchanges that have not ended end with an error."""
        self._closed = True
        while (exchange := self._next_waiting()) is not None:
            self.finish(exchange, error="client closed")
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in list(self._open):
            connection.abort("client closed")
        await asyncio.sleep(0)  # one turn of the loop, in which the transports close

    def _grow(self) -> None:
        room = self._max_connections - len(self._open) - len(self._opening)
        if room > 0 and len(self._opening) < len(self._waiting):
            connection = Connection(self)
            self._opening.add(connection)
            task = asyncio.create_task(self._connect_for_waiting(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect_for_waiting(self, connection: Connection) -> None:
        try:
            await self._connect(connection)
        except OSError as error:
            exchange = self._next_waiting()
            if exchange is not None:
                self.finish(exchange, error=f"connect: {error.strerror or error}")

    async def _connect(self, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, *self._address)
        finally:
            self._opening.discard(connection)

    def _next_waiting(self) -> Exchange | None:
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.is_finished:  # otherwise it timed out while it waited
                return exchange
        return None

    def _expire(self, exchange: Exchange) -> None:
        for connection in self._open:
            if connection.exchange is exchange:
                connection.abort("timeout")
                return
        self.finish(exchange, error="timeout")

    def attach(self, connection: Connection) -> None:
        """Called by a connection that is open now; its connecting task ends a moment later."""
        self._opening.discard(connection)
        self._open.add(connection)
        self.num_opened += 1
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """Called by a connection that is free: it takes the request that waited longest, or becomes idle."""
        exchange = self._next_waiting()
        if exchange is not None:
            connection.send(exchange)
        else:
            self._idle.append(connection)

    def detach(self, connection: Connection) -> None:
        """Called by a connection that is closed now."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting and not self._closed:
            self._grow()

    def finish(self, exchange: Exchange, *, status: int = 0, body: bytes = b"", error: str | None = None) -> None:
        """End an exchange."""
        exchange.finished = time.monotonic()
        exchange.status, exchange.body, exchange.error = status, body, error
        if exchange.timer is not None:
            exchange.timer.cancel()
        if exchange.answered is not None and not exchange.answered.done():
            exchange.answered.set_result(None)
        self._num_ongoing -= 1
        if self._num_ongoing == 0:
            self._drained.set()


class Connection(asyncio.Protocol):
    """One socket with one exchange at a time (no pipelining)."""

    def __init__(self, client: Client) -> None:
        self.exchange: Exchange | None = None
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._status: int | None = None  # of a complete answer that was not handed over yet
        self._keeps_alive = True
        self._lost_because: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether a request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange) -> None:
        """Write the request; the connection must be open and free."""
        assert self._transport is not None, "sent before the connection was made"
        assert self.exchange is None, "sent on a connection that is not free"
        self.exchange = exchange
        self._body.clear()
        exchange.sent = time.monotonic()
        self._transport.write(exchange.request)

    def abort(self, reason: str) -> None:
        """Drop the socket; its exchange, if there is one, ends with the error `reason`."""
        self._lost_because = reason
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport has the methods, not the base class
        self._client.attach(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort(f"bad HTTP answer: {error}")
            return
        if self._status is not None:  # not in the callback: the parser must return before the next send
            status, self._status = self._status, None
            self._complete(status)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._parser.get_status_code() >= 200:  # an answer 1xx comes before the answer proper
            self._status = self._parser.get_status_code()
            self._keeps_alive = self._parser.should_keep_alive()

    def _complete(self, status: int) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            self.abort("answer without a request")
            return
        self._client.finish(exchange, status=status, body=b"".join(self._body))
        if self._keeps_alive:
            self._client.release(self)
        elif self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop; an exchange that is under way ends with an error."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            reason = self._lost_because or (f"connection lost: {exc}" if exc else "connection closed by the server")
            self._client.finish(exchange, error=reason)
        self._client.detach(self)
