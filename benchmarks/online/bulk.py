"""Bulk callers: each posts a large request, waits for its answer and posts the next, so that they take all they can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.online.client import Client, Exchange
from benchmarks.online.errors import Refused
from benchmarks.online.records import Record
from benchmarks.online.target import Ready, describe_outcome
from benchmarks.online.wire import Wire, difference, read_numbers

_PAUSE_S = 0.1
"""Of a caller that was refused: one that asks again at once would only load the server's front."""


@dataclass
class BulkLoad:
    """A few callers whose requests all have the same `rows` rows, the records over and over.

    The expected answer is put together from the answers that the records got one at a time.
    """

    ready: Ready
    wire: Wire
    records: Sequence[Record]
    rows: int
    connections: int
    timeout_s: float
    done: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = sorted(self.ready.target.alone)
        order = [known[row % len(known)] for row in range(self.rows)]
        host = f"{self.ready.target.host}:{self.ready.target.port}"
        chosen = [self.records[number] for number in order]
        self._request = self.wire.request(host, chosen, {"x-priority": "bulk"})
        self._expected = [value for number in order for value in self.ready.target.alone[number]]

    async def check(self) -> None:
        """Send one request alone. Raises Refused if the system refuses it or answers it wrongly."""
        client = self._client()
        await client.open()
        try:
            exchange = await client.ask(self._request)
        finally:
            await client.close()
        if exchange.status != 200:
            raise Refused(
                f"a bulk request of {self.rows} rows was answered {describe_outcome(exchange)}; try fewer --bulk-rows"
            )
        if self.num_wrong([exchange]):
            raise Refused(f"a bulk request of {self.rows} rows was answered otherwise than its rows alone")

    def _client(self) -> Client:
        target = self.ready.target
        return Client(target.host, target.port, connections=self.connections, timeout_s=self.timeout_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until `stop` is set and the last answers have come; the requests that ended are in `done`."""
        client = self._client()
        await client.open()
        try:
            await asyncio.gather(*(self._repeat(client, stop) for _ in range(self.connections)))
        finally:
            await client.close()

    async def _repeat(self, client: Client, stop: asyncio.Event) -> None:
        while not stop.is_set():
            exchange = await client.ask(self._request)
            self.done.append(exchange)
            if exchange.status != 200:
                await asyncio.sleep(_PAUSE_S)

    def rows_per_s(self, begin: float, end: float) -> float:
        """Rows answered per second between two moments of `time.monotonic`.

        The rows of a request count as spread evenly over its time. Otherwise a window of a few seconds would count
        whole requests only.
        """
        answered = [exchange for exchange in self.done if exchange.status == 200]
        return sum(self.rows * _overlap(exchange, begin, end) for exchange in answered) / (end - begin)

    def num_wrong(self, exchanges: Sequence[Exchange] | None = None) -> int:
        """Answers that differ from the expected one."""
        of_these = self.done if exchanges is None else exchanges
        return sum(
            not difference(read_numbers(exchange.body), self._expected) <= self.ready.target.tolerance
            for exchange in of_these
            if exchange.status == 200
        )


def _overlap(exchange: Exchange, begin: float, end: float) -> float:
    """The share of an exchange's time that lies in the window."""
    shared = min(exchange.finished, end) - max(exchange.due, begin)
    return max(0.0, shared) / (exchange.finished - exchange.due)


async def alone(load: BulkLoad, warmup_s: float, duration_s: float) -> float:
    """Rows per second that the bulk callers get while the system serves no other caller."""
    stop = asyncio.Event()
    running = asyncio.create_task(load.run(stop))
    await asyncio.sleep(warmup_s)
    begin = time.monotonic()
    await asyncio.sleep(duration_s)
    end = time.monotonic()
    stop.set()
    await running
    return load.rows_per_s(begin, end)
