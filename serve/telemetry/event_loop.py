"""How late the event loop runs: the delay that a blocked loop adds to every caller."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

LAG_PERIOD_S = 0.05


class Observer(Protocol):
    """A histogram."""

    def observe(self, amount: float) -> None: ...


async def observe_lag(lag: Observer) -> None:
    """Observe, until cancelled, by how many seconds the loop wakes this task too late."""
    while True:
        due = time.monotonic() + LAG_PERIOD_S
        await asyncio.sleep(LAG_PERIOD_S)
        lag.observe(max(0.0, time.monotonic() - due))
