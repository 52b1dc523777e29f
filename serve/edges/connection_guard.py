"""What the connections of one server share: their limits, their clock, and the task that looks for late ones.

Theory of operation
-------------------
A timer for each request costs more than the rest of the guard. So there is one task per server: every `PERIOD_S` it
advances the clock `now`, and asks each connection to look at its own time (`Guarded.sweep`). It asks `_BATCH`
connections at a time and lets other work run between, because 10,000 connections take milliseconds.

What is always true:
- a connection stamps what it begins with `now`, which costs no call. A stamp is at most one period old, so a time limit
  is checked one period later: a caller has its whole time, and at most two periods more;
- the clock advances by two periods at most, however long the event loop stood still: callers do not pay for that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from starlette.responses import Response

from serve.core.errors import Draining, ServeError
from serve.settings import ApiSettings
from serve.telemetry.recorder import Recorder

PERIOD_S = 1.0
"""Time between two looks at all connections."""

_BATCH = 256
_LOG_INTERVAL_S = 10.0

_log = logging.getLogger(__name__)


class Guarded(Protocol):
    """One connection, as the guard sees it."""

    def sweep(self) -> None:
        """Compare the connection's times with the guard's clock, and end what is late."""

    def end_upload(self, error: ServeError) -> None:
        """Answer a request that is still arriving with `error`; nothing where none is."""


class ConnectionGuard:
    """See the head of the file.

    Attributes:
        now: seconds on the guard's own clock.
        is_stopping: the server accepts no connection any more.
        render: the response to an error of a request that no route has seen; called with the error and a request id.
    """

    def __init__(
        self,
        settings: ApiSettings,
        recorder: Recorder,
        render: Callable[[ServeError, str], Response],
        *,
        max_connections: int | None = None,
    ) -> None:
        """`max_connections` replaces that of the settings, where the system permits fewer open files."""
        self.now = 0.0
        self.is_stopping = False
        self.render = render
        self.header_timeout_s = settings.header_timeout_s + PERIOD_S
        self.body_timeout_s = settings.body_timeout_s + PERIOD_S
        self.keep_alive_s = settings.keep_alive_s + PERIOD_S
        self.max_body_bytes = settings.max_body_bytes
        self.max_connections = settings.max_connections if max_connections is None else max_connections
        self._connections: Collection[Guarded] = ()
        self._recorder = recorder
        self._num_turned_away = 0
        self._logged_at = float("-inf")

    def watch(self, connections: Collection[Guarded]) -> None:
        """From now on, `connections` holds the open connections."""
        self._connections = connections
        self._recorder.watch_connections(lambda: len(connections))

    def ended(self, reason: str) -> None:
        """A connection is ended because of what its caller did or did not do."""
        self._recorder.connection_ended(reason)

    def turned_away(self) -> None:
        """A new connection is over the limit. Says so in the log, at most once in ten seconds."""
        self._num_turned_away += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            _log.warning(
                "refused %d new connections: %d are open, the limit (api.max_connections, or the open files that the "
                "system permits)",
                self._num_turned_away,
                self.max_connections,
            )
            self._num_turned_away = 0

    async def sweep_forever(self) -> None:
        """Look at all connections again and again, until cancelled."""
        swept_at = time.monotonic()
        while True:
            await asyncio.sleep(PERIOD_S)
            now = time.monotonic()
            elapsed_s, swept_at = min(now - swept_at, 2 * PERIOD_S), now
            for _ in self._batches(elapsed_s):
                await asyncio.sleep(0)

    def sweep(self, elapsed_s: float) -> None:
        """Let `elapsed_s` pass on the clock, and look at every connection."""
        for _ in self._batches(elapsed_s):
            pass

    def _batches(self, elapsed_s: float) -> Iterator[None]:
        self.now += elapsed_s
        for number, connection in enumerate(list(self._connections), start=1):
            connection.sweep()
            if number % _BATCH == 0:
                yield

    def end_uploads(self) -> None:
        """Refuse every request that is still arriving: a stop does not wait for it any longer."""
        error = Draining("the server is shutting down, and the request had not arrived in full")
        for connection in list(self._connections):
            connection.end_upload(error)
