"""A replica over FakeEngine in the test's process, with real front processes before it, and callers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil
from predictor_harness import make

from serve.core import Batch
from serve.edges.fronts.listener import Fronts
from serve.edges.sockets import bind
from serve.engine.fake import FakeEngine
from serve.replica.lifecycle import ReplicaLifecycle
from serve.replica.predictor import Predictor

PREDICT = "/v1/models/fraud/predict"
BODY = json.dumps({"records": [{"amount": 3.0}]}).encode()


@dataclass
class Gate:
    """Holds batches on the device while shut."""

    may_pass: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_pass.set()

    def __call__(self, batch: Batch) -> None:
        self.batches.append(batch.rows[:, 0].tolist())
        self.entered.release()
        assert self.may_pass.wait(60), "a test left the gate shut"

    def shut(self) -> None:
        """From now on; forgets what has passed."""
        self.may_pass.clear()
        self.batches.clear()
        while self.entered.acquire(blocking=False):
            pass


@dataclass
class Replica:
    """A replica and its fronts."""

    predictor: Predictor
    fronts: Fronts
    lifecycle: ReplicaLifecycle
    port: int
    gate: Gate
    connections: list[Connection] = field(default_factory=list)

    async def connect(self) -> Connection:
        """A connection, which is closed at the end."""
        self.connections.append(Connection(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.connections[-1]

    def counts(self) -> dict[str, float]:
        """Counters of requests by outcome, as `/metrics` has them."""
        text = self.predictor.telemetry.prometheus.render().decode()
        found = re.findall(r'^tabpfn_requests_total\{model="\w+",outcome="(\w+)"\} (\S+)$', text, re.M)
        return {outcome: float(value) for outcome, value in found}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the event loop turn until the condition holds."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - other processes set no event here
                await asyncio.sleep(0.001)

    async def until_replaced(self, pid: int) -> None:
        """Another process than `pid` listens in its place."""
        await self.until(lambda: pid not in self.fronts.pids)
        await self.until(lambda: all(link.is_listening.is_set() for link in self.fronts._links.values()))

    async def connections_to_all(self, at_least: int = 1) -> dict[int, list[Connection]]:
        """Connections by the process that has them: so many to each front, as the kernel happens to spread them."""
        found: dict[int, list[Connection]] = {pid: [] for pid in self.fronts.pids}
        while min(map(len, found.values())) < at_least:
            connection = await self.connect()
            assert (await connection.ask())[0] == 200
            found[connection.front(self.fronts)].append(connection)
        return found


class Connection:
    """One connection, spoken on by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.writer.get_extra_info("sockname")
        return address

    def send(self, body: bytes = BODY, *headers: str, method: str = "POST", path: str = PREDICT) -> None:
        head = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers, "", ""]
        self.writer.write("\r\n".join(head).encode() + body)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(60):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            return int(lines[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, body: bytes = BODY, *headers: str) -> tuple[int, dict[str, str], bytes]:
        self.send(body, *headers)
        return await self.answer()

    def front(self, fronts: Fronts) -> int:
        """The process id of the front that has this connection."""
        for pid in fronts.pids:
            if any(s.raddr and tuple(s.raddr) == self.address for s in psutil.Process(pid).net_connections("tcp")):
                return pid
        raise AssertionError("no front has this connection")

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def replica_with_fronts(num_fronts: int, **batching: float) -> AsyncIterator[Replica]:
    gate = Gate()
    predictor = make(FakeEngine(gate=gate), batching=batching)
    sock = bind("127.0.0.1", 0)
    fronts = Fronts(predictor, lambda: sock, num_fronts)
    lifecycle = ReplicaLifecycle(predictor, [fronts])
    await lifecycle.start()
    replica = Replica(predictor, fronts, lifecycle, sock.getsockname()[1], gate)
    try:
        yield replica
    finally:
        gate.may_pass.set()
        for connection in replica.connections:
            await connection.close()
        await lifecycle.stop()
