"""What a front counts, until the core's recorder has it.

Every event of a front is kept here for `PERIOD_S` and crosses with all others of that time in one message. A message
for each turn of the event loop would take the core a fifth of its time. So a front that is killed loses the counts of
one period at most. How late the loop runs is sampled at intervals; those samples wait for the next message, or for a
second.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from serve.edges.fronts.messages import Report
from serve.telemetry.recorder import Recorder

PERIOD_S = 0.005
_LONGEST_WAIT_S = 1.0


class ReportingRecorder(Recorder):
    """The `Recorder` of a front.

    Args:
        send: sends a report to the core.
    """

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._answered: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._refused: Counter[tuple[str, str]] = Counter()
        self._ended: Counter[str] = Counter()
        self._lag_s: list[float] = []
        self._count_connections: Callable[[], int] = lambda: 0
        self._due_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, model: str, outcome: str, seconds: Sequence[float]) -> None:
        self._answered[model, outcome] += seconds
        self._send_within(PERIOD_S)

    def refused(self, model: str, reason: str) -> None:
        self._refused[model, reason] += 1
        self._send_within(PERIOD_S)

    def connection_ended(self, reason: str) -> None:
        self._ended[reason] += 1
        self._send_within(PERIOD_S)

    def watch_connections(self, count: Callable[[], int]) -> None:
        self._count_connections = count

    def loop_lagged(self, seconds: float) -> None:
        self._lag_s.append(seconds)
        self._send_within(_LONGEST_WAIT_S)

    def flush(self) -> None:
        """Send what has been counted since the last report."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._due_at = None, math.inf
        report = Report(
            [(*key, seconds) for key, seconds in self._answered.items()],
            [(*key, count) for key, count in self._refused.items()],
            list(self._ended.items()),
            self._lag_s,
            self._count_connections(),
        )
        self._answered.clear()
        self._refused.clear()
        self._ended.clear()
        self._lag_s = []
        self._send(report)

    def _send_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time() + seconds
        if due_at < self._due_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._due_at = loop.call_later(seconds, self.flush), due_at
