"""The server of `benchmarks.online.gpu_like`: `tabpfn-serve up` with its defaults, and another program as its worker.

`python -m benchmarks.online.gpu_like_server --port PORT --fronts COUNT`. The parts are those that `up` puts together
(`serve/replica/factory.py`, `serve/edges/uvicorn_server.py`). No setting of the server names another worker, so that no
operator can serve made-up answers by mistake.
"""

from __future__ import annotations

import argparse
import asyncio
import os

import uvloop

from benchmarks.online.gpu_like_device import GPU
from serve.edges.sockets import bind
from serve.edges.uvicorn_server import listener_of
from serve.engine.worker.client import WorkerEngine
from serve.replica.lifecycle import StoppedBeforeReady, lifecycle_of
from serve.replica.predictor import Predictor
from serve.settings import ApiSettings, EngineSettings, ServerSettings
from serve.store import FolderStore
from serve.telemetry.telemetry import Telemetry

_WORKER = ("-m", "benchmarks.online.gpu_like_engine")


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--fronts", type=int, default=1, help="the setting api.num_fronts")
    given = parser.parse_args()
    settings = ServerSettings(engine=EngineSettings(device=GPU), api=ApiSettings(num_fronts=given.fronts))
    engine = WorkerEngine(settings.engine, settings.batching.max_batch_rows, _WORKER)
    predictor = Predictor(FolderStore(settings.store), engine, settings, Telemetry())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(predictor, given.port))


async def _serve(predictor: Predictor, port: int) -> None:
    lifecycle = lifecycle_of(predictor, [listener_of(predictor, lambda: bind("127.0.0.1", port))])
    try:
        await lifecycle.run(lambda: None)
    except StoppedBeforeReady:
        os._exit(0)  # a fit cannot be interrupted otherwise


if __name__ == "__main__":
    main()
