"""Fixtures of the benchmark tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from scripted_server import Handler, ScriptedServer, StartServer


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """Starts servers with a given script, and stops them after the test."""
    servers: list[ScriptedServer] = []

    async def start(handler: Handler) -> ScriptedServer:
        server = ScriptedServer(handler)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
def never_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are not void by lag: generator and scripted server share an event loop, on a busy machine."""
    monkeypatch.setattr("benchmarks.online.summary.lag_reason", lambda *_: None)
