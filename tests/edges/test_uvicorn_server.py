"""The server on somebody else's loop."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from ports import free_port
from predictor_harness import make

from serve.core.errors import StartupError
from serve.edges.uvicorn_server import EmbeddedServer


async def test_a_door_answers_until_it_is_closed() -> None:
    predictor, port = make(), free_port()
    await predictor.start()
    door = EmbeddedServer(predictor, "127.0.0.1", port)
    assert not door.is_open
    await door.open()
    assert door.is_open
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        body = {"records": [{"amount": 3.0}]}
        answer = await client.post("/v1/models/fraud/predict", json=body, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
    await asyncio.gather(door.close(), door.close())
    assert not door.is_open
    assert not predictor.is_ready
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/v2/health/live")


async def test_who_takes_over_listens_before_the_old_one_leaves() -> None:
    old, new, port = make(), make(), free_port()
    doors = []
    for predictor in (old, new):
        await predictor.start()
        doors.append(EmbeddedServer(predictor, "127.0.0.1", port))
        await doors[-1].open()
    await doors[0].close()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/v2/health/ready")).status_code == 200
    await doors[1].close()


async def test_an_address_that_cannot_be_had_is_a_failed_start() -> None:
    predictor = make()
    await predictor.start()
    with socket.socket() as taken:  # not shared: bound without SO_REUSEPORT
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1 port {port}"):
            await EmbeddedServer(predictor, "127.0.0.1", port).open()
    await predictor.close()
