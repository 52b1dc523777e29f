"""The client: latency from the due time, one end for every exchange, nothing sent twice."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest
from scripted_server import Answer, Request, ScriptedServer, StartServer, fraud_model

from benchmarks.online.client import Client, Connection, Exchange
from benchmarks.online.open_loop import send_on_time
from benchmarks.online.wire import get_request, native_wire

REQUEST = native_wire("fraud").request("localhost", [{"amount": 1.0}])


def client_of(server: ScriptedServer, **options: Any) -> Client:
    return Client("127.0.0.1", server.port, **{"timeout_s": 20.0, **options})


async def test_a_connection_is_used_again(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    client = client_of(server)
    await client.open()
    answers = [await client.ask(REQUEST) for _ in range(5)]
    await client.close()
    assert [answer.status for answer in answers] == [200] * 5
    assert json.loads(answers[0].body)["predictions"][0]["label"] == "0"
    assert server.num_connections == client.num_opened == 1


async def test_latency_includes_the_stall_for_requests_held_back_by_it(start_server: StartServer) -> None:
    """One connection, a server that stalls on the first request: a closed loop would call the others fast."""
    released: list[float] = []

    async def stall_once(_: Request) -> Answer:
        if not released:
            await asyncio.sleep(0.15)
            released.append(time.monotonic())
        return 200, {}

    server = await start_server(stall_once)
    client = client_of(server, connections=1, max_connections=1)
    await client.open()
    exchanges = await send_on_time(client, [0.01 * step for step in range(10)], [0] * 10, [REQUEST])
    await client.drain()
    await client.close()
    during = [exchange for exchange in exchanges if exchange.due < released[0]]
    assert during
    for exchange in exchanges:
        assert exchange.latency_ms >= 1000 * (released[0] - exchange.due)
    for exchange in exchanges[1:]:
        assert exchange.sent >= released[0] or exchange.due >= released[0]
        assert exchange.send_lag_ms >= 1000 * (released[0] - exchange.due)


async def test_requests_are_sent_on_time_while_the_server_stalls(start_server: StartServer) -> None:
    """Open loop: with connections to be had, all are sent although none is answered; the server waits for all ten."""
    all_here = asyncio.Event()
    received = 0

    async def answer_when_all_are_here(_: Request) -> Answer:
        nonlocal received
        received += 1
        if received == 10:
            all_here.set()
        await all_here.wait()
        return 200, {"at": time.monotonic()}

    server = await start_server(answer_when_all_are_here)
    client = client_of(server, connections=1, max_connections=10)
    await client.open()
    exchanges = await send_on_time(client, [0.005 * step for step in range(10)], [0] * 10, [REQUEST])
    await client.drain()
    await client.close()
    assert [exchange.status for exchange in exchanges] == [200] * 10
    assert client.num_opened == 10
    for exchange in exchanges:
        released_at = json.loads(exchange.body)["at"]
        assert exchange.sent <= released_at
        assert exchange.latency_ms >= 1000 * (released_at - exchange.due)


async def test_nothing_is_sent_before_it_is_due(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    client = client_of(server, connections=4)
    await client.open()
    due = [0.0, 0.0, 0.0013, 0.0021, 0.0034, 0.01, 0.0101]
    exchanges = await send_on_time(client, due, [0] * len(due), [REQUEST])
    await client.drain()
    await client.close()
    assert all(exchange.send_lag_ms >= 0 for exchange in exchanges)
    assert [exchange.due - exchanges[0].due for exchange in exchanges] == pytest.approx(due, abs=1e-6)


async def test_no_more_connections_than_allowed(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    client = client_of(server, connections=1, max_connections=3)
    await client.open()
    exchanges = await send_on_time(client, [0.0] * 50, [0] * 50, [REQUEST])
    await client.drain()
    await client.close()
    assert [exchange.status for exchange in exchanges] == [200] * 50
    assert server.num_connections <= 3


async def test_a_connection_that_has_just_opened_is_counted_once(start_server: StartServer) -> None:
    """A request that comes while the connecting task of an open connection still runs gets the last connection."""
    all_here = asyncio.Event()
    received = 0

    async def answer_when_three_are_here(_: Request) -> Answer:
        nonlocal received
        received += 1
        if received == 3:
            all_here.set()
        await all_here.wait()
        return 200, {}

    server = await start_server(answer_when_three_are_here)
    client = client_of(server, connections=1, max_connections=3)
    await client.open()
    exchanges = [Exchange(time.monotonic(), REQUEST) for _ in range(3)]
    attach = client.attach

    def attach_and_submit(connection: Connection) -> None:
        attach(connection)
        if client.num_opened == 2:
            client.submit(exchanges[2])

    client.attach = attach_and_submit  # type: ignore[method-assign]
    client.submit(exchanges[0])
    client.submit(exchanges[1])
    await asyncio.wait_for(all_here.wait(), 10)
    await client.drain()
    await client.close()
    assert [exchange.status for exchange in exchanges] == [200] * 3
    assert client.num_opened == 3


async def test_a_lost_connection_is_an_error_and_not_sent_again(start_server: StartServer) -> None:
    async def hang_up(_: Request) -> Answer:
        return 0, None

    server = await start_server(hang_up)
    client = client_of(server)
    await client.open()
    exchange = await client.ask(REQUEST)
    again = await client.ask(REQUEST)  # over a new connection
    await client.close()
    assert exchange.status == again.status == 0
    assert exchange.error is not None
    assert "connection" in exchange.error
    assert server.num_requests == 2


async def test_an_unanswered_request_is_given_up_and_its_latency_kept(start_server: StartServer) -> None:
    never = asyncio.Event()

    async def never_answer(_: Request) -> Answer:
        await never.wait()
        return 200, {}

    server = await start_server(never_answer)
    client = client_of(server, connections=1, max_connections=1, timeout_s=0.1)
    await client.open()
    exchanges = [Exchange(time.monotonic(), REQUEST), Exchange(time.monotonic(), REQUEST)]
    for exchange in exchanges:
        client.submit(exchange)
    await client.drain()
    await client.close()
    assert [exchange.error for exchange in exchanges] == ["timeout", "timeout"]
    assert exchanges[0].is_sent
    assert all(exchange.latency_ms > 50 for exchange in exchanges)


async def test_no_server_is_an_error_of_each_request() -> None:
    with (
        socket.socket() as taken
    ):  # bound but not listening: no server answers there, and no other process can take the port
        taken.bind(("127.0.0.1", 0))
        client = Client("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConnectionRefusedError):
            await client.open()
        exchange = await client.ask(REQUEST)
        await client.close()
    assert exchange.error is not None
    assert exchange.error.startswith("connect: ")


async def test_chunked_answers_and_closing_servers_are_understood(start_server: StartServer) -> None:
    async def odd(request: Request) -> Answer:
        if request.path == "/chunked":
            return 200, b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n3\r\n:1}\r\n0\r\n\r\n'
        if request.path == "/continue":
            return 200, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        if request.path == "/garbage":
            return 200, b"ICY 200 OK\r\n\r\n"
        return 200, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"

    server = await start_server(odd)
    client = client_of(server)
    await client.open()
    chunked, goes_on, closing, after, garbage = [
        await client.ask(get_request("localhost", path))
        for path in ("/chunked", "/continue", "/close", "/chunked", "/garbage")
    ]
    await client.close()
    assert json.loads(chunked.body) == json.loads(after.body) == {"a": 1}
    assert (goes_on.status, goes_on.body) == (closing.status, closing.body) == (200, b"{}")
    assert server.num_connections == 2
    assert garbage.status == 0
    assert garbage.error is not None
    assert garbage.error.startswith("bad HTTP answer")
