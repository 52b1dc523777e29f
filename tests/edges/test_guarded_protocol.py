"""How long one connection may hold the server, how many there are, and how each one ends: over real sockets."""

from __future__ import annotations

import logging
import resource
import socket
import struct
from collections.abc import Iterator

import pytest
from edge_harness import wait_until
from edges.guard_harness import BODY, LONG_S, PREDICT, TIMEOUT_S, Caller, Gate, Guarded, get, head, predict, serving

from serve.edges.bounded_protocol import Reading
from serve.edges.guarded_protocol import MIN_BYTES_PER_S
from serve.edges.sockets import permit_open_files

ASSET = "/docs/assets/swagger-ui-bundle.js"
"""An answer of more than a megabyte."""


GET_PATHS = (
    "/v1/models", "/v1/models/fraud", "/v1/models/fraud/versions/1", "/v1/status", "/metrics", "/ping",
    "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", ASSET,
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    with serving() as server:
        yield server


@pytest.fixture
def caller(server: Guarded) -> Iterator[Caller]:
    """The only one."""
    server.wait_for(lambda _: False)
    caller = server.connect()
    yield caller
    caller.close()


def reset(caller: Caller) -> None:
    """Close at once, with a reset."""
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()


# Time


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: te"])
def test_a_head_that_stalls_gets_408(server: Guarded, caller: Caller, sent: bytes) -> None:
    caller.send(sent)
    server.wait_for(lambda connection: connection.reading is Reading.HEAD)
    server.pass_time(LONG_S)
    caller.send(b"")
    server.pass_time(2)
    answer = caller.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (408, "request_timeout", "close")
    assert caller.is_at_end()
    assert server.metric('tabpfn_ended_connections_total{reason="request_timeout"}')


def test_a_trickle_of_headers_gets_408(server: Guarded, caller: Caller) -> None:
    """The time counts from the first byte, however often another one comes."""
    caller.send(b"GET / HTTP/1.1\r\n")
    for number in range(3):
        caller.send(b"x: y\r\n")
        server.wait_for(lambda connection, n=number: connection.num_part_bytes >= 16 + 6 * (n + 1))  # type: ignore[misc]
        server.pass_time(LONG_S / 2)
    assert caller.answer().status == 408


@pytest.mark.parametrize("form", ["Content-Length: 8000000", "Transfer-Encoding: chunked"])
def test_a_body_that_stalls_gets_408(server: Guarded, caller: Caller, form: str) -> None:
    left = 'tabpfn_requests_total{model="fraud",outcome="client_disconnected"}'
    before = server.metric(left)
    caller.send(head(form) + b"5\r\n{")
    server.wait_for(lambda connection: connection.reading is Reading.BODY)
    server.pass_time(LONG_S + 2)
    assert caller.answer().code == "request_timeout"
    assert caller.is_at_end()
    assert server.metric(left) == before + 1


def test_a_body_on_a_slow_link_arrives(server: Guarded, caller: Caller) -> None:
    """It has a second more for each 16 KiB that have come. A trickle has not."""
    body = BODY + b" " * (40 * MIN_BYTES_PER_S)
    caller.send(head(f"Content-Length: {len(body)}", "x-request-timeout-ms: 86400000") + body[:-1])
    server.wait_for(lambda connection: connection.num_part_bytes > 39 * MIN_BYTES_PER_S)
    server.pass_time(LONG_S + 30)
    assert caller.send(body[-1:]).answer().status == 200


def test_an_idle_connection_closes_without_a_word(server: Guarded, caller: Caller) -> None:
    other = server.connect()
    assert caller.send(get() + b"\r\n\r\n").answer().status == 200
    server.pass_time(LONG_S - 1)
    assert caller.send(get()).answer().status == 200, "a request begins the time anew"
    server.pass_time(3)
    assert other.is_at_end(), "nothing of a request has arrived on it"
    assert caller.send(get()).answer().status == 200
    server.pass_time(LONG_S + 2)
    assert caller.is_at_end()


def test_a_caller_that_waits_for_its_answer_is_not_idle() -> None:
    gate = Gate()
    with serving(gate) as server:
        gate.shut()
        caller = server.connect().send(predict())
        assert gate.entered.wait(TIMEOUT_S)
        server.pass_time(5 * LONG_S)
        gate.open()
        assert caller.answer().status == 200


def test_a_caller_that_does_not_read_its_answers_is_cut_off(server: Guarded, caller: Caller) -> None:
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    caller.send(get(ASSET) * 8)
    server.wait_for(lambda connection: connection.flow is not None and connection.flow.write_paused)
    for _ in range(3):
        server.pass_time(LONG_S / 2 + 2)
    server.wait_for(lambda _: False)
    assert server.metric('tabpfn_ended_connections_total{reason="unread_answer"}') == 1


def test_a_caller_that_reads_slowly_has_its_answer(server: Guarded, caller: Caller) -> None:
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    caller.send(get(ASSET) * 8)
    server.wait_for(lambda connection: connection.flow is not None and connection.flow.write_paused)
    lengths = set()
    for _ in range(8):
        server.pass_time(LONG_S - 1)
        lengths.add(len(caller.answer().body))
    assert len(lengths) == 1


# The ends of a connection


@pytest.mark.parametrize("requests", [predict(), get(), predict() + predict(), predict() + get()])
def test_a_request_followed_by_fin_is_answered(caller: Caller, requests: bytes) -> None:
    caller.send(requests).close_writing()
    answers = [caller.answer() for _ in range(requests.count(b"HTTP/1.1"))]
    assert {answer.status for answer in answers} == {200}
    assert caller.is_at_end()


def test_fin_while_the_request_waits_for_the_device() -> None:
    gate = Gate()
    with serving(gate) as server:
        gate.shut()
        caller = server.connect().send(predict())
        assert gate.entered.wait(TIMEOUT_S)
        caller.close_writing()
        server.wait_for(lambda connection: connection._half_closed_at is not None)
        server.pass_time(2)
        server.pass_time(2)
        gate.open()
        assert caller.answer().status == 100, "which every client of HTTP/1.1 skips"
        assert caller.answer().status == 200
        assert caller.is_at_end()


def test_a_caller_that_is_gone_is_found_and_its_request_cancelled() -> None:
    """FIN alone does not say that it is gone. The reset does, with which its system answers the next byte."""
    gate = Gate()
    with serving(gate) as server:
        gate.shut()
        server.connect().send(predict())
        assert gate.entered.wait(TIMEOUT_S)
        gone = server.connect().send(predict())
        wait_until(lambda: server.metric("tabpfn_queued_requests") == 1)
        gone.close()

        def is_gone() -> bool:
            server.pass_time(2)
            return len(server.call(server.connections)) == 1

        wait_until(is_gone)
        wait_until(lambda: server.metric("tabpfn_queued_requests") == 0)
        assert server.metric('tabpfn_requests_total{model="fraud",outcome="client_disconnected"}') == 1


def test_a_caller_that_resets_is_gone_at_once(server: Guarded, caller: Caller) -> None:
    caller.send(head("Content-Length: 100"))
    server.wait_for(lambda connection: connection.reading is Reading.BODY)
    reset(caller)
    server.wait_for(lambda _: False)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", head("Content-Length: 9") + b"{"], ids=["nothing", "head", "body"])
def test_fin_within_a_request_ends_the_connection(caller: Caller, sent: bytes) -> None:
    caller.send(sent).close_writing()
    assert caller.is_at_end()


@pytest.mark.parametrize(
    ("rest", "statuses"),
    [(b"GET / HT", [200, 400]), (head("Content-Length: 9") + b"{", [200])],
    ids=["head", "body, which is not read before the first answer"],
)
def test_fin_within_the_second_request_leaves_the_answer_to_the_first(rest: bytes, statuses: list[int]) -> None:
    gate = Gate()
    with serving(gate) as server:
        gate.shut()
        caller = server.connect().send(predict() + rest).close_writing()
        assert gate.entered.wait(TIMEOUT_S)
        gate.open()
        assert [caller.answer().status for _ in statuses] == statuses
        assert caller.is_at_end()


# A stop


def test_a_stop_does_not_wait_for_what_does_not_arrive() -> None:
    gate = Gate()
    with serving(gate) as server:
        gate.shut()
        admitted = server.connect().send(predict())
        assert gate.entered.wait(TIMEOUT_S)
        stalled = [server.connect().send(sent) for sent in (b"GET / HT", head("Content-Length: 9") + b"{")]
        late = server.connect().send(get()[:-1])
        idle = server.connect()
        wait_until(lambda: sum(c.reading is not Reading.NOTHING for c in server.call(server.connections)) == 3)
        wait_until(lambda: len(server.call(server.connections)) == 5)
        server.loop.call_soon_threadsafe(server.lifecycle._begin_stop)
        assert idle.is_at_end()
        answer = late.send(b"\n").answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close"), "it arrived within the grace"
        refused = [caller.answer() for caller in stalled]
        assert [(answer.status, answer.code) for answer in refused] == [(503, "draining")] * 2
        # The admitted request alone is left. No byte is waited for any more.
        wait_until(lambda: len(server.call(server.connections)) == 1)
        gate.open()
        assert admitted.answer().status == 200


# Number


def test_connections_over_the_limit_are_told_so(caplog: pytest.LogCaptureFixture) -> None:
    with serving(max_connections=2) as server, caplog.at_level(logging.WARNING):
        inside = [server.connect() for _ in range(2)]
        assert [caller.send(get()).answer().status for caller in inside] == [200, 200]
        assert server.metric("tabpfn_connections") == 2
        outside = [server.connect() for _ in range(70)]
        answer = outside[0].answer()
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "too_many_connections", "1")
        assert outside[0].is_at_end()
        assert [caller.send(get()).answer().status for caller in inside] == [200, 200]
        wait_until(lambda: server.metric('tabpfn_ended_connections_total{reason="too_many_connections"}') == 70)
        warnings = [record for record in caplog.records if "new connections" in record.message]
        assert [record.args for record in warnings] == [(1, 2)], "one line in ten seconds"
        inside[0].close()
        server.pass_time(5)
        wait_until(lambda: len(server.call(server.connections)) == 1)
        assert server.connect().send(get()).answer().status == 200


def test_the_limit_of_open_files_is_raised_and_bounds_that_of_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (512, 1_024))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    assert permit_open_files() == 1_024
    assert given == [(1_024, 1_024)]
    with serving(max_connections=10_000) as server:
        assert server.guard.max_connections == 768
    assert "the system permits 768" in caplog.text
    monkeypatch.setattr(resource, "getrlimit", lambda _: (512, resource.RLIM_INFINITY))
    assert permit_open_files() > 2**20


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_works_wherever_get_does(caller: Caller, path: str) -> None:
    caller.send(head(method="HEAD", path=path))
    bare = caller.answer("HEAD")
    full = caller.send(get(path)).answer()
    assert (bare.status, full.status) == (200, 200)
    changes = ("date", "x-request-id", *(("content-length",) if path in ("/metrics", "/v1/status") else ()))
    for answer in (bare, full):
        assert int(answer.headers["content-length"]) == len(full.body) or "content-length" in changes
        for name in changes:
            del answer.headers[name]
    assert bare.headers == full.headers


def test_head_of_an_unknown_path_has_no_body(caller: Caller) -> None:
    caller.send(head(method="HEAD", path="/nothing"))
    assert caller.answer("HEAD").status == 404
    caller.send(head(method="HEAD", path=PREDICT))
    assert caller.answer("HEAD").status == 405
    assert caller.send(get()).answer().status == 200
