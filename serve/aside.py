"""The event loop is everybody's: what would keep it from them goes to a thread, and what keeps it all the same is seen.

A request of a thousand rows takes tens of milliseconds to read, which on the loop would be added to the latency of
every other caller. There is one such thread, so that however many large requests come, the loop shares the interpreter
with one of them at a time. Small requests are read on the loop: crossing threads costs more than they do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

SMALL_ROWS = 32
SMALL_BYTES = 32 * 1024
"""Up to these a request is read on the loop: about a millisecond."""

LAG_PERIOD_S = 0.05

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Aside:
    """One thread for the large requests of one loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-requests")

    async def run(self, is_large: bool, fn: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """`fn(*args, **kwargs)`, on the thread if `is_large`; its exceptions are raised here."""
        if not is_large:
            return fn(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: fn(*args, **kwargs))

    def close(self) -> None:
        """Take nothing more; who is being read already goes on, and is refused where everybody is."""
        self._thread.shutdown(wait=False)


class Observer(Protocol):
    """A histogram."""

    def observe(self, amount: float) -> None: ...


async def observe_lag(lag: Observer) -> None:
    """Observe, until cancelled, by how many seconds the loop wakes this task too late."""
    while True:
        due = time.monotonic() + LAG_PERIOD_S
        await asyncio.sleep(LAG_PERIOD_S)
        lag.observe(max(0.0, time.monotonic() - due))
