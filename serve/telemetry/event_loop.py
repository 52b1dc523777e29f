"""How late the event loop runs: the delay that a blocked loop adds to every caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LAG_PERIOD_S = 0.05


async def observe_lag(report: Callable[[float], None]) -> None:
    """Report, until cancelled, by how many seconds the loop wakes this task too late."""
    while True:
        due = time.monotonic() + LAG_PERIOD_S
        await asyncio.sleep(LAG_PERIOD_S)
        report(max(0.0, time.monotonic() - due))
