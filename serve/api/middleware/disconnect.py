"""Cancels the work for a caller that has gone.

While a request waits for its batch, nothing else reads its connection. One task waits there for the disconnect and
then cancels the work, so that the queue skips the rows. Rows that are already on the device finish without a reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

_T = TypeVar("_T")


async def run_while_connected(work: Awaitable[_T], receive: Receive) -> _T:
    """The result of `work`, whose request body must have been read whole. Raises ClientDisconnect.

    The work runs in the calling task, and a disconnect cancels that task: a second task for each request costs more.
    """
    caller = asyncio.current_task()
    assert caller is not None
    watch = asyncio.ensure_future(_disconnected(receive))
    waiting, left = True, False

    def leave(_: object) -> None:
        nonlocal left
        if waiting:
            left = True
            caller.cancel()

    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and not caller.uncancel():  # no other cancellation was requested
            raise ClientDisconnect from watch.exception()
        raise
    finally:
        waiting = False
        watch.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
