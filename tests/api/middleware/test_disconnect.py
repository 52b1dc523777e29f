"""Work is cancelled when its caller goes, and by nothing else."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from serve.api.middleware.request_body import run_while_connected


class Connection:
    """An ASGI `receive` whose client leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_the_result_comes_through_and_nothing_is_left_running() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    before = asyncio.all_tasks()
    assert await run_while_connected(work(), Connection().receive) == 7
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_an_error_comes_through() -> None:
    async def work() -> int:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run_while_connected(work(), Connection().receive)


async def test_a_disconnect_cancels_the_work() -> None:
    connection, began, cancelled = Connection(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    request = asyncio.create_task(run_while_connected(work(), connection.receive))
    await began.wait()
    connection.left.set()
    with pytest.raises(ClientDisconnect):
        await request
    assert cancelled.is_set()


async def test_a_cancellation_from_outside_stays_one() -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(run_while_connected(work(), Connection().receive))
    await began.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
