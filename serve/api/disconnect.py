"""A caller who has gone away is not computed for.

While a request waits for its batch, nothing else reads its connection; one task waits there for the disconnect and
cancels the work when it comes, so that the queue can skip the rows. Rows that are already on the device finish unheard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

_T = TypeVar("_T")


async def run_while_connected(work: Coroutine[Any, Any, _T], receive: Receive) -> _T:
    """The result of `work`, whose request body must have been read whole. Raises ClientDisconnect."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    watch.add_done_callback(lambda _: task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            raise ClientDisconnect from watch.exception()
        raise
    finally:
        watch.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
