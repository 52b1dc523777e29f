"""The Ray Serve edge, and the only `import ray`: the deployment, its builder, and the launcher of `tabpfn-serve serve`.

Theory of operation
-------------------
A replica holds everything: ASGI app, batcher, engine. Ray adds none of its own queues: `max_ongoing_requests` lies far
above our admission limit, which refuses first. A request comes to it in one of two ways:

- a replica that is alone listens itself (`uvicorn_server.EmbeddedServer`): no hop, and none of the work of Ray's
  own server for each request (docs/decisions/001-cost-of-the-front.md). Ray has placement, health and replacement;
- several share Ray's HAProxy, which gives a request to who has least to do. So too under Ray's own `serve run`.

The start: the replica's constructor starts the predictor, so Ray calls it running only when every model has passed
its checks; a StartupError ends the deployment at its first try, and its own words are what the launcher prints.

The end. Ray drops what is in flight when it goes down, so the launcher goes before it, in this order:

1. Close the door: HAProxy, or the replica's own, accepts nothing more and finishes what it has (`ingress.py`).
2. Requests that are inside are served as ever, for `GRACE_S`. Nearly always all are answered by then.
3. Drain, by a broadcast that reaches every replica: what was admitted is answered, within `drain_timeout_s`, what then
   remains is failed with 503, and the engine is closed.
4. The last answers leave, HAProxy ends by itself. Only then Ray is taken down.

When Ray itself replaces a replica (a rolling update) it takes it out of HAProxy's list, waits for what it has, and
ends the app's lifespan, which drains the same predictor.
"""

# No `from __future__ import annotations`: Ray reads the class of `build`'s argument from its signature.

import contextlib
import importlib
import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.api import create_app
from serve.core import ServerState
from serve.core.errors import StartupError
from serve.edges.ray.haproxy import HAProxy
from serve.settings import ServerSettings

APP_NAME = "tabpfn-serve"
DEPLOYMENT_NAME = "TabPFNDeployment"

GRACE_S = 1.0
"""How long requests already inside may still be admitted after the door closed."""

LAST_BYTES_S = 15.0
"""After the drain: for answers on their way out, and for the calls themselves."""

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 100_000_000  # nothing of ours goes through it

_log = logging.getLogger(__name__)


@serve.ingress()
class TabPFNDeployment:
    """One replica."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, settings: ServerSettings, address: tuple[str, int] | None = None
    ) -> None:
        """`address`: listen there, instead of behind Ray's HAProxy."""
        from serve.edges.uvicorn_server import EmbeddedServer  # uvicorn, which the launcher does without
        from serve.replica.factory import assemble

        _keep_to_loopback()
        self._predictor = assemble(settings)
        await self._predictor.start()
        self._door = None if address is None else EmbeddedServer(self._predictor, *address)
        if self._door is not None:
            await self._door.open()

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Ray adds the request id to every answer that goes through it, and enters the lifespan in any case.
        return create_app(self._predictor, answers_request_id=False, before_drain=self._close_door)

    async def _close_door(self) -> None:
        if self._door is not None:
            await self._door.close()

    def check_health(self) -> None:
        """Asked by Ray; an exception three times in a row has the replica replaced."""
        if self._predictor.failed:
            raise RuntimeError("the batcher has failed, or its batch hangs")
        if self._predictor.state is ServerState.CLOSED:
            raise RuntimeError("the replica is closed")
        if self._door is not None and not self._door.is_open:
            raise RuntimeError("the replica does not listen any more")

    async def drain(self) -> None:
        """Step 3 of the end; all of it where the replica listens itself."""
        await self._close_door()
        await self._predictor.drain()
        await self._predictor.close()


def _keep_to_loopback() -> None:
    """On a node that is all loopback, bind the replica's port for calls by handle there too.

    Ray 2.60 binds it to all interfaces with no setting against it (`replica.py`, `_on_initialized`, which runs after
    our constructor); this replaces the one function it binds with, in this process only.
    """
    if ray.util.get_node_ip_address() == _LOOPBACK:  # type: ignore[no-untyped-call]
        module: Any = importlib.import_module("ray.serve._private.replica")
        bind = module.add_port_to_grpc_server
        module.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", _LOOPBACK))


def build(args: ServerSettings) -> serve.Application:
    """What `serve_config.yaml` names: the application of these settings."""
    return _deployment(args).bind(args)


def _deployment(settings: ServerSettings, num_replicas: int = 1) -> serve.Deployment:
    configure = serve.deployment(
        name=DEPLOYMENT_NAME,
        num_replicas=num_replicas,
        # Refusing (429) is our admission's work and needs a place here; beyond it Ray would queue without a limit.
        max_ongoing_requests=4 * settings.batching.ongoing_requests_limit,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(settings.engine.device.startswith("cuda"))},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.api.drain_timeout_s + 10,
        # A model that fails its checks will fail them again.
        max_constructor_retry_count=1,
        logging_config={"enable_access_log": False},
    )
    return configure(TabPFNDeployment)


@dataclass(frozen=True, slots=True)
class Launch:
    """What the launcher is told beside the settings."""

    host: str
    port: int
    num_replicas: int
    dashboard: bool


def run(settings: ServerSettings, launch: Launch, haproxy: HAProxy | None, on_ready: Callable[[], None]) -> None:
    """Start a local Ray and serve on it until SIGTERM or SIGINT. Needs the environment of `ray_environment.py`.

    `ingress` is Ray's HAProxy; without it the replica, which must be the only one, listens itself. Raises StartupError.
    `on_ready` is called when it serves.
    """
    stop = threading.Event()
    try:
        try:
            handle = _start(settings, launch, own_door=haproxy is None)
        except (KeyboardInterrupt, SystemExit):  # SIGINT, SIGTERM
            return  # nobody was let in yet
        with _stop_requests(stop):
            on_ready()
            stop.wait()
            _drain(handle, haproxy, settings.api.drain_timeout_s)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _starting_ray() -> Iterator[None]:
    """Ray gives its own parts half a minute and has no setting for it; on a busy machine that can be too short."""
    try:
        yield
    except Exception as error:
        raise StartupError(f"Ray did not start: {(str(error).strip() or repr(error)).splitlines()[-1]}") from error


def _start(settings: ServerSettings, launch: Launch, *, own_door: bool) -> DeploymentHandle[Any]:
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _starting_ray():
        ray.init(
            address="local",
            num_cpus=max(len(os.sched_getaffinity(0)), launch.num_replicas),
            include_dashboard=launch.dashboard,
            dashboard_host=_LOOPBACK,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # Ray's own prints a stack
    num_gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if settings.engine.device.startswith("cuda") and num_gpus < launch.num_replicas:
        # Ray would wait for more to join the cluster.
        raise StartupError(f"{launch.num_replicas} GPU(s) are needed, Ray sees {num_gpus}")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # The loopback whatever was asked for: the front door's address is `ingress.py`'s work.
    keep_alive_s = math.ceil(settings.api.keep_alive_s)
    options = {"host": _LOOPBACK, "port": launch.port, "keep_alive_timeout_s": keep_alive_s}
    with _starting_ray():
        serve.start(proxy_location="Disabled" if own_door else "HeadOnly", http_options=options)
    address = (launch.host, launch.port) if own_door else None
    target = _deployment(settings, launch.num_replicas).bind(_with_log(settings), address)
    try:
        handle = serve.run(target, name=APP_NAME, route_prefix="/")
    except RuntimeError:
        raise StartupError(_cause()) from None
    # Asked now, so that the handle knows its replicas when they are to drain.
    handle.broadcast("check_health").results(timeout_s=30)
    return handle


def _with_log(settings: ServerSettings) -> ServerSettings:
    """Metrics that are written to the log go to the launcher's own: a replica's output ends in a file of Ray's."""
    if settings.metrics.emf_namespace is None or settings.metrics.emf_path is not None:
        return settings
    own_output = settings.metrics.model_copy(update={"emf_path": Path(f"/proc/{os.getpid()}/fd/1")})
    return settings.model_copy(update={"metrics": own_output})


def _cause() -> str:
    """Why the deployment failed: the last line of what its constructor raised."""
    application = serve.status().applications[APP_NAME]
    for deployment in application.deployments.values():
        if raised := re.findall(
            r"^(?:serve\.core\.errors\.\w+: |(?=[\w.]+(?:Error|Exception): ))(.*)$", deployment.message, re.M
        ):
            return str(raised[-1])
    return application.message


@contextlib.contextmanager
def _stop_requests(stop: threading.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets `stop`; a second SIGINT does not wait for the drain."""

    def ask(signum: int, _: Any) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            sys.exit(1)
        stop.set()

    previous = {signum: signal.signal(signum, ask) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _drain(handle: DeploymentHandle[Any], haproxy: HAProxy | None, drain_timeout_s: float) -> None:
    if haproxy is not None:
        haproxy.close()
        haproxy.wait_empty(GRACE_S)
    try:
        handle.broadcast("drain").results(timeout_s=drain_timeout_s + LAST_BYTES_S)
    except Exception:
        # A replica that died has nothing left to answer; the others were asked all the same.
        _log.exception("a replica did not drain")
    if haproxy is not None and not haproxy.wait_empty(LAST_BYTES_S):
        _log.warning("some callers have not read their answers; they are cut off")
