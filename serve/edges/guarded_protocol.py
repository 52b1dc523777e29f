"""The HTTP protocol of a server whose callers nobody trusts: what one connection may hold, and for how long.

Theory of operation
-------------------
`BoundedProtocol` has the limits of size. This class has those of time and number, and the ends of a connection. `sweep`
is called once a second (`connection_guard.py`).

- *Arrival.* A head has `api.header_timeout_s`. A body has `api.body_timeout_s`, and a second more for each
  `MIN_BYTES_PER_S` that have come: a large body on a slow link arrives in the end, and a trickle does not. Time in
  which the server itself does not read is not counted. A late request gets 408. A connection on which nothing of a
  request has arrived closes without a word after `api.keep_alive_s`.
- *Answers.* A caller has `api.body_timeout_s` to read the next `MIN_BYTES_PER_S` of its answer, or the rest.
- *Number.* A connection over `api.max_connections` gets 503. Only `_SPARE_CONNECTIONS` at a time wait to be told so,
  because each takes an open file. The others are closed.
- *Refusal.* The server sends the last answer and FIN, discards what still arrives for `LINGER_S`, and closes.
- *Half-closed.* A caller may have sent FIN behind its request (`SHUT_WR`), or may be gone: FIN looks the same. It gets
  its answer, then the connection closes. Where that takes more than a second, the server sends `100 Continue`, which
  every client of HTTP/1.1 skips. The system of a caller that is gone answers with a reset, and that cancels the
  request. A caller that sent FIN within its request is gone.
- *Stop.* A request that is arriving when the server stops may arrive in full until `ConnectionGuard.end_uploads`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from serve.api.errors import InvalidRequest, RequestTimeout, TooManyConnections
from serve.core.errors import ServeError
from serve.edges.bounded_protocol import BoundedProtocol, Reading
from serve.edges.connection_guard import PERIOD_S
from serve.edges.holdable_flow import HoldableFlow

MIN_BYTES_PER_S = 16 * 2**10
LINGER_S = 1.0

_SPARE_CONNECTIONS = 64
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TCP_CLOSE = 7
"""The state of a socket that was reset, in Linux's `tcp_states.h`."""


class GuardedProtocol(BoundedProtocol):
    """One connection; see the head of the file."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lingers_until: float | None = None
        self._half_closed_at: float | None = None
        self._has_probed = False
        self._unread: tuple[int, int, float] | None = None
        """(bytes that wait to be sent, answers so far, time) when the caller last read; None where none wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = HoldableFlow(transport)
        excess = len(self.connections) - self.guard.max_connections
        if excess > 0:
            self._turn_away(excess)

    def _turn_away(self, excess: int) -> None:
        self.guard.turned_away()
        if excess > _SPARE_CONNECTIONS:
            self.guard.ended(TooManyConnections.code)
            self.transport.abort()
        else:
            self.refuse(TooManyConnections("the server has as many open connections as it takes"))

    # The ends of a connection

    def eof_received(self) -> bool:  # type: ignore[override]
        """The caller sends no more. Returns whether it still gets an answer."""
        if not self.num_due:
            return False
        if self._half_closed_at is None:
            self._half_closed_at = self.guard.now
        if self.last_answer is None:
            if self.reading is Reading.NOTHING:
                self.shutdown()
            else:
                self.refuse(InvalidRequest("the connection ended within the request"))
        return True

    def shutdown(self) -> None:
        """Close the connection, or let the answer to the newest request be the last one."""
        if self._lingers_until is not None:
            self.transport.close()
        elif self.reading is Reading.HEAD:
            self.ends_after_head = True
        elif self.last_answer is None:
            super().shutdown()

    def end_upload(self, error: ServeError) -> None:
        """Answer a request that is still arriving with `error`; nothing where none is."""
        if self.reading is not Reading.NOTHING:
            self.refuse(error)

    def end(self) -> None:
        """Send the last answer, and close once the caller has had the time to read it."""
        self.transport.write(self.last_answer or b"")
        if self._half_closed_at is not None or self.guard.is_stopping:
            self.transport.close()
            return
        self.transport.write_eof()
        self._lingers_until = self.guard.now + LINGER_S + PERIOD_S
        self.flow.release()

    # Time

    def sweep(self) -> None:
        """Compare the connection's times with the guard's clock, and end what is late."""
        now = self.guard.now
        if self._leaves_answer_unread(now):
            self.guard.ended("unread_answer")
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._lingers_until is not None:
            if now >= self._lingers_until:
                self.transport.close()
        elif self._half_closed_at is not None:
            self._look_for_caller(now - self._half_closed_at)
        elif self.last_answer is None:
            self._check_arrival(now)

    def _check_arrival(self, now: float) -> None:
        elapsed_s = now - self.since
        if self.reading is Reading.NOTHING:
            if elapsed_s > self.guard.keep_alive_s and self.num_answered == self.num_begun:
                self.transport.close()
        elif self.flow.read_paused:
            self.since = now
        elif self.reading is Reading.HEAD:
            if elapsed_s > self.guard.header_timeout_s:
                self.refuse(RequestTimeout("the request line and the headers took too long to arrive"))
        elif elapsed_s > self.guard.body_timeout_s + self.num_part_bytes / MIN_BYTES_PER_S:
            self.refuse(RequestTimeout("the body took too long to arrive"))

    def _leaves_answer_unread(self, now: float) -> bool:
        """Whether the caller has read too little for too long. A growing buffer is one that was read from."""
        size = self.transport.get_write_buffer_size()
        if not size:
            self._unread = None
            return False
        before, answers, since = self._unread or (0, 0, now)
        if answers == self.num_answered and before - MIN_BYTES_PER_S < size <= before:
            return now - since > self.guard.body_timeout_s
        self._unread = (size, self.num_answered, now)
        return False

    def _look_for_caller(self, elapsed_s: float) -> None:
        """See the head of the file, *Half-closed*."""
        if self._has_probed:
            sock = self.transport.get_extra_info("socket")
            if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
                self.transport.abort()
        elif elapsed_s > PERIOD_S and self.num_due == 1 and self.parser.get_http_version() != "1.0":
            has_begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
            if not has_begun:
                self._has_probed = True
                self.transport.write(_CONTINUE)
