"""One request for a prediction, from socket to socket, enters few files of the server. docs/architecture.md names them.

The demo model answers over uvicorn, first with its engine in a worker, then with its engine in this process. The calls
of the event loop and of the device thread are watched. What only the second way enters is the worker's.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from ports import free_port

import serve
from serve.edges.uvicorn_server import EmbeddedServer
from serve.replica.factory import assemble
from serve.settings import EngineSettings, ServerSettings

MAX_FILES = 22
MAX_WORKER_FILES = 10
SERVE = Path(serve.__file__).parent

BACKGROUND = {"observe_lag", "on_tick", "sweep_forever", "_watch"}
"""Functions that timers call, whether or not a request comes."""


class Calls:
    """The files of the server whose functions are called while `is_watching`, in the order of their first call."""

    def __init__(self) -> None:
        self.is_watching = False
        self.files: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.is_watching or event != "call":
            return
        code = frame.f_code
        if code.co_filename.startswith(f"{SERVE}/"):
            file = str(Path(code.co_filename).relative_to(SERVE))
            is_background = code.co_name in BACKGROUND or self._is_below_background(frame)
            if not is_background and file not in self.files:
                self.files.append(file)

    def _is_below_background(self, frame: FrameType) -> bool:
        above = frame.f_back
        while above is not None:
            if above.f_code.co_name in BACKGROUND and above.f_code.co_filename.startswith(f"{SERVE}/"):
                return True
            above = above.f_back
        return False


@pytest.fixture
def calls() -> Iterator[Calls]:
    """Before anything else starts a thread, so that the device thread is watched too."""
    calls = Calls()
    threading.setprofile(calls)
    sys.setprofile(calls)
    yield calls
    sys.setprofile(None)
    threading.setprofile(None)


async def files_entered(calls: Calls, settings: ServerSettings) -> list[str]:
    """By the second of two requests: the first may set up what is kept."""
    calls.files = []
    predictor = assemble(settings)
    await predictor.start()
    port = free_port()
    server = EmbeddedServer.at(predictor, "127.0.0.1", port)
    await server.open()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        example = (await client.get("/v1/models/fraud")).json()["example"]
        body = json.dumps({"records": [example]}).encode()
        for is_watching in (False, True):
            calls.is_watching = is_watching
            response = await client.post("/v1/models/fraud/predict", content=body)
            assert response.status_code == 200, response.text
        calls.is_watching = False
    await server.close()
    await predictor.close()
    return calls.files


async def test_a_request_enters_few_files_and_the_architecture_names_them(calls: Calls) -> None:
    server = await files_entered(calls, ServerSettings())
    assert {"edges/fast_path_protocol.py", "batching/device.py", "engine/worker/client.py"} <= set(server)
    assert len(server) <= MAX_FILES, "\n".join(server)

    everything = await files_entered(calls, ServerSettings(engine=EngineSettings(worker_process=False)))
    worker = {*everything, "engine/worker/server.py"} - set(server)
    assert "engine/compiled.py" in worker
    assert len(worker) <= MAX_WORKER_FILES, "\n".join(sorted(worker))

    page = (SERVE.parent / "docs" / "architecture.md").read_text()
    steps = page[page.index("## The life of a request") : page.index("## The life of a replica")]
    assert f"{len(server)} files of the server's process and {len(worker)} more of the worker's" in steps
    for file in {*server, *worker}:
        assert file.removesuffix("__init__.py").rstrip("/").rsplit("/", 1)[-1] in steps, file
