"""One timer for many deadlines: it is set to the earliest and asks anew when it rings."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Calls `ring` on the event loop, no earlier than it was set for; whoever rings sets it again.

    Setting it to a later time than it stands at does nothing, so with like timeouts it costs one comparison a request.
    """

    def __init__(self, clock: Callable[[], float], ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        if at >= self._at:
            return
        self.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self._clock()), self._fire)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._at = math.inf

    def _fire(self) -> None:
        self._timer = None
        self._at = math.inf
        self._ring()
