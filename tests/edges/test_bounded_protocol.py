"""What one connection can make the server read, and what it is told: over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from edges.guard_harness import BODY, Caller, Gate, Guarded, get, head, predict, serving

from serve.edges.bounded_protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from serve.edges.guarded_protocol import GuardedProtocol

CHUNKED = head("Transfer-Encoding: chunked")
UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade: h2c",
)
"""As the HTTP client of the JDK sends them with its first request."""


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    with serving() as server:
        yield server


@pytest.fixture
def caller(server: Guarded) -> Caller:
    return server.connect()


# Size


@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nHost: test\r\nx"],
    ids=["target", "value", "name"],
)
def test_a_head_that_never_ends_is_refused(caller: Caller, start: bytes) -> None:
    caller.send(start)
    for _ in range(MAX_HEAD_BYTES // 2048 + 4):
        caller.send(b"y" * 2048)
    answer = caller.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (431, "headers_too_large", "close")
    assert caller.is_at_end()


@pytest.mark.parametrize("in_one", [True, False])
def test_a_complete_head_is_measured_to_the_byte(server: Guarded, in_one: bool) -> None:
    def ask(num_bytes: int) -> int:
        request = get("/v2/health/live", "x: y")
        request = request.replace(b"x: y", b"x: " + b"y" * (num_bytes - len(request) + 1))
        assert len(request) == num_bytes
        step = num_bytes if in_one else 1_500
        caller = server.connect()
        for start in range(0, num_bytes, step):
            caller.send(request[start : start + step])
        return caller.answer().status

    assert [ask(MAX_HEAD_BYTES), ask(MAX_HEAD_BYTES + 1)] == [200, 431]


def test_headers_are_counted(server: Guarded) -> None:
    def ask(num_headers: int) -> int:
        return server.connect().send(get("/ping", *(f"x-{n}: y" for n in range(num_headers - 1)))).answer().status

    assert [ask(MAX_HEADERS), ask(MAX_HEADERS + 1)] == [200, 431]


def test_a_packet_full_of_headers_costs_little(server: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser hands on each of them, so it must be stopped within what one read brings."""
    seen = []
    monkeypatch.setattr(GuardedProtocol, "on_header", lambda _, name, value: seen.append((name, value)))
    caller = server.connect()
    caller.send(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 65_000)
    assert caller.answer().code == "headers_too_large"
    assert len(seen) < (MAX_HEAD_BYTES + 8192) / 4


@pytest.mark.parametrize("endless", [b"x: y\r\n", b"x: " + b"y" * 4096, b"x" * 4096], ids=["many", "value", "name"])
def test_trailers_that_never_end_are_refused(caller: Caller, endless: bytes) -> None:
    caller.send(CHUNKED + chunk(BODY) + b"0\r\n")
    for _ in range(2 * MAX_HEAD_BYTES // len(endless)):
        caller.send(endless)
    assert (answer := caller.answer()).status == 431
    assert answer.code == "headers_too_large"
    assert caller.is_at_end()


def test_an_extension_of_a_chunk_that_never_ends_is_refused(caller: Caller) -> None:
    caller.send(CHUNKED + b"5")
    for _ in range(2 * MAX_HEAD_BYTES // 2048):
        caller.send(b";" + b"x" * 2047)
    assert caller.answer().code == "headers_too_large"


def test_trailers_are_no_headers(caller: Caller) -> None:
    """The app has read its headers, and a proxy in front has checked them."""
    caller.send(CHUNKED + chunk(BODY, b";a=b") + b"0\r\nx-priority: nonsense\r\nx-request-id: \xff\r\n\r\n")
    assert caller.answer().status == 200


# A fault of the caller


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (head("Content-Length: nine"), "invalid_header"),
        (head("Content-Length: -1"), "invalid_header"),
        (head("Content-Length: 5", "Transfer-Encoding: chunked"), "invalid_request"),
        (CHUNKED + b"xyz\r\n", "invalid_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "invalid_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "invalid_request"),
        (b"GET /\xff HTTP/1.1\r\nHost: test\r\n\r\n", "invalid_request"),
        (b"GET http:// HTTP/1.1\r\nHost: test\r\n\r\n", "invalid_request"),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", "invalid_request"),
        (head("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 1e3"), "invalid_header"),
    ],
)
def test_what_the_parser_refuses_is_a_problem_too(caller: Caller, request_bytes: bytes, code: str) -> None:
    answer = caller.send(request_bytes).answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, code, "close")
    assert caller.is_at_end()


def test_a_problem_of_the_parser_has_the_callers_request_id(caller: Caller) -> None:
    answer = caller.send(head("x-request-id: mine", "Content-Length: nine")).answer()
    assert answer.problem["request_id"] == "mine"


def test_a_refusal_follows_the_answers_that_are_due(server: Guarded, caller: Caller) -> None:
    ended = 'tabpfn_ended_connections_total{reason="invalid_request"}'
    before = server.metric(ended)
    caller.send(predict("x-request-id: 1") + predict("x-request-id: 2") + b"nonsense\r\n\r\n" + get())
    answers = [caller.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert [answer.headers["x-request-id"] for answer in answers[:2]] == ["1", "2"]
    assert caller.is_at_end()
    assert server.metric(ended) == before + 1


def test_a_refusal_survives_what_its_caller_still_sends(caller: Caller) -> None:
    """Bytes that lie unread in a socket as it closes would reset the connection."""
    caller.send(b"nonsense\r\n\r\n")
    caller.send(b"x" * 2**20)
    assert caller.answer().code == "invalid_request"


def test_a_fault_within_a_body_disconnects_its_request(server: Guarded, caller: Caller) -> None:
    left = 'tabpfn_requests_total{model="fraud",outcome="client_disconnected"}'
    before = server.metric(left)
    caller.send(CHUNKED + chunk(b"{") + b"xyz\r\n")
    assert caller.answer().code == "invalid_request"
    assert caller.is_at_end()
    assert server.metric(left) == before + 1


def test_a_fault_of_ours_is_not_called_the_callers(
    server: Guarded, caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (connection,) = (c for c in server.call(server.connections) if c.client[1] == caller.socket.getsockname()[1])  # type: ignore
    monkeypatch.setattr(connection, "_fast_path", None)
    answer = caller.send(predict()).answer()
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "NoneType" in caplog.text


# Upgrade


def with_upgrade(form: str) -> bytes:
    if form == "chunked":
        return head(*UPGRADE, "Transfer-Encoding: chunked") + chunk(BODY[:7]) + chunk(BODY[7:]) + b"0\r\n\r\n"
    if form == "no body":
        return get("/v2/health/live", *UPGRADE)
    return predict(*UPGRADE)


@pytest.mark.parametrize("form", ["with length", "chunked", "no body"])
def test_an_upgrade_is_ignored_however_the_request_arrives(server: Guarded, form: str) -> None:
    """A connection for every place at which two packets can meet; each goes on with ordinary requests."""
    request = with_upgrade(form) + get("/v1/models") + with_upgrade(form)
    first = len(with_upgrade(form)) + 4
    for place in range(1, first):
        caller = server.connect()
        caller.send(request[:place])
        server.call(lambda: None)  # the server has turned its loop
        caller.send(request[place:])
        assert [caller.answer().status for _ in range(3)] == [200, 200, 200], place
        caller.close()


def test_an_upgrade_arrives_byte_by_byte(caller: Caller) -> None:
    for byte in with_upgrade("with length"):
        caller.send(bytes([byte]))
    assert caller.answer().status == 200


def test_a_websocket_is_not_offered(caller: Caller) -> None:
    answer = caller.send(get("/v1/models", "Connection: Upgrade", "Upgrade: websocket")).answer()
    assert answer.status == 200
    assert caller.send(get()).answer().status == 200


# Pipelines


def test_a_flood_of_requests_is_parsed_as_they_are_answered() -> None:
    gate = Gate()
    with serving(gate) as server:
        gate.shut()
        caller = server.connect()
        caller.send(predict() + get() * 5_000)
        assert gate.entered.wait(20)
        (connection,) = server.call(server.connections)
        # One slice of 4 KiB beyond the limit at most, and the socket is not read any more.
        most = MAX_PIPELINED + 4096 // len(get())
        assert server.call(lambda: len(connection.pipeline)) <= most
        assert server.call(lambda: connection.flow.is_held)
        gate.open()
        assert {caller.answer().status for _ in range(5_001)} == {200}


def test_a_large_body_behind_a_slow_request_waits_and_arrives() -> None:
    gate = Gate()
    with serving(gate) as server:
        gate.shut()
        caller = server.connect()
        caller.send(predict("x-request-id: 1"))
        assert gate.entered.wait(20)
        large = b'{"records": [' + b",".join([b'{"amount": 1.0}'] * 6_000) + b"]}"
        caller.send(get() * (MAX_PIPELINED + 3) + predict("x-request-id: 2", body=large) + get())
        gate.open()
        statuses = [caller.answer().status for _ in range(MAX_PIPELINED + 6)]
        assert statuses == [200] * len(statuses)
