"""uvicorn's HTTP protocol, which bounds what one connection can make the server read, and refuses with a problem.

Theory of operation
-------------------
uvicorn reads whatever comes. This class stands between the socket and uvicorn's parser, and between the parser and
uvicorn's callbacks. It counts the requests begun and answered, and knows which part of a request is arriving:

- *Size.* A head (request line and headers) has at most `MAX_HEAD_BYTES` and `MAX_HEADERS`. The parser names a header
  only once it is complete, so an endless one is counted by the bytes that arrive. So is what comes within a chunked
  body and is none of it. Trailers are dropped: a header that the app has not seen must not appear later.
- *Share of the event loop.* The parser gets `_SLICE_BYTES` at a time. With `MAX_PIPELINED` requests unanswered the rest
  waits, and the socket is not read.
- *Upgrade.* No other protocol is spoken here, and RFC 9110 lets a server ignore the wish. The parser stops behind such
  a head and takes the body for another protocol. So a new parser gets the same head without `Upgrade`, then the body.
- *Refusal.* A refusal of the connection is its last answer, behind those that are due before it. Nothing is parsed from
  then on. The server sends no more, and slowly discards what still arrives until the subclass closes the connection: to
  close at once would reset it, and a reset can destroy the answer.

What is always true: a subclass calls `on_response_complete` once for each answered request, in their order.
"""

from __future__ import annotations

import enum
import logging
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve.api.errors import HeadersTooLarge, InvalidHeader, InvalidRequest
from serve.api.request_headers import new_request_id, read_request_id
from serve.api.statuses import INTERNAL_ERROR
from serve.core.errors import ServeError
from serve.edges.connection_guard import ConnectionGuard
from serve.edges.holdable_flow import HoldableFlow

MAX_HEAD_BYTES = 32 * 2**10
MAX_HEADERS = 128
MAX_PIPELINED = 16
_SLICE_BYTES = 4096
_DISCARD_PAUSE_S = 0.01
"""Between two reads whose bytes are dropped."""

_log = logging.getLogger(__name__)


class Reading(enum.Enum):
    """The part of a request that is arriving."""

    NOTHING = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class BoundedProtocol(HttpToolsProtocol):
    """One connection; see the head of the file."""

    flow: HoldableFlow

    def __init__(self, *arguments: Any, guard: ConnectionGuard, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.guard = guard
        self.parser = self._make_parser()
        self.reading = Reading.NOTHING
        self.since = guard.now
        """When the part that is arriving began; where none is, when the connection became idle."""
        self.num_part_bytes = 0
        """Bytes of that part in earlier slices, and those before it in the first of them."""
        self._num_other_bytes = 0
        """Bytes behind the head of a request that are none of its body: trailers, extensions of chunks."""
        self._num_slice_bytes, self._has_body_bytes = 0, False
        """Of the slice that is being parsed."""
        self._num_headers = 0
        """Of the request whose body is arriving."""
        self.num_begun = 0
        """Requests whose head has arrived."""
        self.num_answered = 0
        self._held = b""
        """What has arrived, and waits until earlier requests are answered."""
        self._is_upgrade = False
        self.ends_after_head = False
        """The server stops: the request whose head is arriving is the last one."""
        self.last_answer: bytes | None = None
        """The refusal of the connection. Where it is set, nothing is parsed any more."""
        self.num_discarded = 0
        """Bytes that arrived after it."""

    def _make_parser(self) -> httptools.HttpRequestParser:
        callbacks = SimpleNamespace(
            on_message_begin=self._head_begins,
            on_url=self.on_url,
            on_header=self.on_header,
            on_headers_complete=self._head_has_arrived,
            on_body=self._body_arrives,
            on_message_complete=self._request_has_arrived,
        )
        parser = httptools.HttpRequestParser(callbacks)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return parser

    @property
    def num_due(self) -> int:
        """Requests that have arrived in full, and are not answered."""
        is_arriving = self.reading is Reading.BODY and self.num_answered < self.num_begun
        return self.num_begun - self.num_answered - is_arriving

    # What arrives

    def data_received(self, data: bytes) -> None:
        if self.last_answer is not None:
            self._discard(len(data))
        elif self._held or len(data) > _SLICE_BYTES:
            self._held += data
            self._parse_held()
        else:
            self._parse(data)
            if self.num_begun - self.num_answered >= MAX_PIPELINED:
                self._hold()

    def _discard(self, num_bytes: int) -> None:
        """Drop what arrives, slowly: at full speed a caller that floods would keep the event loop busy with it."""
        self.num_discarded += num_bytes
        if self.num_discarded > self.guard.max_body_bytes:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(_DISCARD_PAUSE_S, self._discard_more)

    def _discard_more(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _parse_held(self) -> None:
        data, self._held = self._held, b""
        view = memoryview(data)
        for start in range(0, len(data), _SLICE_BYTES):
            if self.last_answer is not None or self.transport.is_closing():
                return
            if self.num_begun - self.num_answered >= MAX_PIPELINED:
                self._held = data[start:]
                self._hold()
                return
            self._parse(view[start : start + _SLICE_BYTES])
        if self.flow.is_held and self.last_answer is None:
            self._release()

    def _release(self) -> None:
        """Read, unless uvicorn waits for the app to take the body, or for the answers to pipelined requests."""
        self.flow.is_held = False
        if not self.pipeline and (self.cycle is None or len(self.cycle.body) <= HIGH_WATER_LIMIT):
            self.flow.resume_reading()

    def _hold(self) -> None:
        if not self.transport.is_closing():
            self.flow.hold()

    def _parse(self, data: bytes | memoryview) -> None:
        self._num_slice_bytes, self._has_body_bytes = len(data), False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(bytes(data[upgrade.args[0] :]))
            return
        except httptools.HttpParserError as error:
            self.refuse(_fault_of(error))
            return
        if self.reading is Reading.NOTHING:
            return
        if self.reading is Reading.BODY:
            self._bound_body(len(data))
        else:
            self.num_part_bytes += len(data)
            if self.num_part_bytes > MAX_HEAD_BYTES + _SLICE_BYTES:  # the first slice may hold another request too
                self.refuse(_head_too_large())

    def _bound_body(self, num_bytes: int) -> None:
        self.num_part_bytes += num_bytes
        del self.headers[self._num_headers :]
        if not self._has_body_bytes:
            self._num_other_bytes += num_bytes
            if self._num_other_bytes > MAX_HEAD_BYTES:
                self.refuse(HeadersTooLarge(f"more than {MAX_HEAD_BYTES} bytes within the body are none of it"))

    def _parse_without_upgrade(self, rest: bytes) -> None:
        self._is_upgrade = False
        method = self.parser.get_method()
        if method == b"CONNECT":  # whose target is no path, and which has no `Upgrade` to take away
            self.refuse(InvalidRequest("CONNECT is not served here"))
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = self._make_parser()
        self._parse(b"\r\n".join([*lines, b"", b""]))
        if rest and self.last_answer is None:
            self._parse(rest)

    # The parser's callbacks

    def _head_begins(self) -> None:
        self.reading, self.since, self.num_part_bytes = Reading.HEAD, self.guard.now, 0
        self.on_message_begin()

    def _head_has_arrived(self) -> None:
        num_headers = len(self.headers)
        may_be_large = self.num_part_bytes + self._num_slice_bytes > MAX_HEAD_BYTES
        if num_headers > MAX_HEADERS or (may_be_large and self._num_head_bytes() > MAX_HEAD_BYTES):
            raise _head_too_large()
        if self.parser.should_upgrade():
            self._is_upgrade = True
            return
        self.reading, self.since, self.num_part_bytes = Reading.BODY, self.guard.now, 0
        self._num_headers, self._num_other_bytes = num_headers, 0
        self.num_begun += 1
        self.on_headers_complete()
        if self.ends_after_head:
            self.shutdown()

    def _num_head_bytes(self) -> int:
        """As the caller wrote it, with one space behind each colon."""
        line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        return line + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers) + len("\r\n")

    def _body_arrives(self, body: bytes) -> None:
        self._has_body_bytes = True
        self.on_body(body)

    def _request_has_arrived(self) -> None:
        if self._is_upgrade:
            return
        self.reading = Reading.NOTHING
        del self.headers[self._num_headers :]
        self.on_message_complete()

    # Answers

    def on_response_complete(self) -> None:
        self.num_answered += 1
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.reading is Reading.NOTHING:
            self.since = self.guard.now
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self.last_answer is not None:
            if self.num_answered == self.num_begun:
                self.end()
        elif self._held:
            self.loop.call_soon(self._parse_held)
        elif self.flow.read_paused:
            self.flow.release()

    def refuse(self, error: ServeError) -> None:
        """Answer `error` behind the answers that are due, in place of what is arriving, and end the connection."""
        if self.last_answer is not None or self.transport.is_closing():
            return
        self.guard.ended(error.code)
        answer = b""
        if self.reading is not Reading.BODY or self._abandon_arriving():
            answer = self._encoded(error)
        self.last_answer, self._held = answer, b""
        if self.num_answered == self.num_begun:
            self.end()
        else:
            self._hold()

    def _abandon_arriving(self) -> bool:
        """Let the app see a disconnect. Returns whether the request may still be answered."""
        if self.num_answered == self.num_begun:
            return False  # it has been answered before its body was read
        self.num_begun -= 1
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return True  # a subclass has the request
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
        cycle.disconnected = True
        cycle.message_event.set()
        return not cycle.response_started

    def _encoded(self, error: ServeError) -> bytes:
        try:
            request_id = read_request_id(self.headers or ())
        except InvalidHeader:
            request_id = new_request_id()
        response = self.guard.render(error, request_id)
        lines = [STATUS_LINE[response.status_code].removesuffix(b"\r\n")]
        headers = (*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close"))
        lines += [name + b": " + value for name, value in headers]
        return b"\r\n".join([*lines, b"", bytes(response.body)])

    def end(self) -> None:
        """Send the last answer, and end the connection. A subclass says how."""
        self.transport.write(self.last_answer or b"")
        self.transport.close()


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"request line and headers may have {MAX_HEAD_BYTES} bytes in all, and {MAX_HEADERS} headers at most"
    )


def _fault_of(error: httptools.HttpParserError) -> ServeError:
    if not isinstance(error, httptools.HttpParserCallbackError):
        kind = InvalidHeader if "in Content-Length" in str(error) else InvalidRequest
        return kind(f"this is no request of HTTP/1.1: {error}")
    cause = error.__context__
    if isinstance(cause, ServeError):
        return cause
    if isinstance(cause, httptools.HttpParserInvalidURLError | UnicodeError):
        return InvalidRequest("the target of the request is no path in ASCII")
    _log.error("the server failed on the head of a request", exc_info=cause)
    fault = ServeError("a fault of the server")  # which is rendered as an internal error
    fault.code = INTERNAL_ERROR
    return fault
