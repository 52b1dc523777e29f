"""uvicorn as a listener on the loop of its owner."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest
from ports import free_port
from predictor_harness import make

from serve.core import ServerState
from serve.core.errors import StartupError
from serve.edges.uvicorn_server import EmbeddedServer
from serve.replica.lifecycle import ReplicaLifecycle


async def test_a_server_answers_until_the_replica_stops() -> None:
    predictor, port = make(), free_port()
    server = EmbeddedServer.at(predictor, "127.0.0.1", port)
    lifecycle = ReplicaLifecycle(predictor, [server])
    assert not server.is_open
    await lifecycle.start()
    assert server.is_open
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        body = {"records": [{"amount": 3.0}]}
        answer = await client.post("/v1/models/fraud/predict", json=body, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
    await asyncio.gather(lifecycle.stop(), lifecycle.stop())
    assert not server.is_open
    assert not predictor.is_ready
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/v2/health/live")


async def test_the_next_replica_listens_before_the_old_one_leaves() -> None:
    port, lives = free_port(), []
    for predictor in (make(), make()):
        lives.append(ReplicaLifecycle(predictor, [EmbeddedServer.at(predictor, "127.0.0.1", port)]))
        await lives[-1].start()
    await lives[0].stop()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/v2/health/ready")).status_code == 200
    await lives[1].stop()


async def test_an_address_that_cannot_be_had_is_a_failed_start() -> None:
    predictor = make()
    with socket.socket() as taken:  # not shared: bound without SO_REUSEPORT
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        lifecycle = ReplicaLifecycle(predictor, [EmbeddedServer.at(predictor, "127.0.0.1", port)])
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1 port {port}"):
            await lifecycle.start()
    assert predictor.state is ServerState.CLOSED


async def test_a_caller_that_does_not_read_its_answer_is_cut_off() -> None:
    predictor, port = make(), free_port()
    server = EmbeddedServer.at(predictor, "127.0.0.1", port)
    lifecycle = ReplicaLifecycle(predictor, [server], last_bytes_s=0.0)
    await lifecycle.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/models/fraud/predict HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n")
    while not server.num_connections:  # noqa: ASYNC110 - of a loop that turns
        await asyncio.sleep(0)
    await lifecycle.stop()
    assert server.num_connections == 0
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
