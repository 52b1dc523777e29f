"""Keeps the event loop responsive: large requests are parsed and encoded on a worker thread.

A request of a thousand rows takes tens of milliseconds to read. On the event loop that time would be added to the
latency of every other caller. One thread reads all large requests, one after the other, so that the loop shares the
interpreter with one of them at most. Small requests are read on the loop, because crossing threads costs more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from serve.core import FittedContext, Matrix, QueryTable

SMALL_ROWS = 32
SMALL_BYTES = 32 * 1024
"""A request of this size or smaller is read on the loop, in about a millisecond."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class LargeRequestExecutor:
    """One thread for the large requests of one loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-requests")

    async def run(self, fn: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """`fn(*args, **kwargs)` on the thread; its exceptions are raised here. Small requests do without a call."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: fn(*args, **kwargs))

    async def encode(self, context: FittedContext, table: QueryTable) -> Matrix:
        """The rows of a table as `context` encodes them: few at once, many on the thread. Raises InvalidInput."""
        if table.num_rows <= SMALL_ROWS:
            return context.encode(table)
        return await self.run(context.encode, table)

    def close(self) -> None:
        """Start no more work. The work that waits or runs is finished; admission then refuses its requests."""
        self._thread.shutdown(wait=False)
