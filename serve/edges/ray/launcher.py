"""The launcher of `tabpfn-serve serve`: starts a local Ray and the replicas, watches them, and stops them in order.

Theory of operation
-------------------
Ray drops the requests in flight when it goes down, so the launcher stops the replicas before it. The order is that of
`replica/lifecycle.py`, with all replicas as what is served and HAProxy as the listener. Each step reaches the replicas
by a broadcast. A replica that listens itself closes its listener as part of its own stop, which that broadcast begins.
Ray is taken down when the last answer has left.

While it serves, the launcher copies the log of the replicas to its standard error (`replica_log.py`), and says when a
replica is lost, when it was replaced, and when a new configuration was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.core.errors import StartupError
from serve.edges.ray import environment, replica_log
from serve.edges.ray.deployment import APP_NAME, DEPLOYMENT_NAME, deployment_of
from serve.edges.ray.haproxy import HAProxy
from serve.edges.ray.replica_watch import ReplicaWatch, last_line, raised_in, replicas_in
from serve.replica.lifecycle import ReplicaLifecycle
from serve.settings import ServerSettings

LAST_BYTES_S = 15.0
"""After the drain: for answers on their way out, and for the broadcasts themselves."""

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 100_000_000  # no request and no answer goes through it
_CALL_TIMEOUT_S = 30.0
_WATCH_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """The options of the launcher beside the settings."""

    host: str
    port: int
    num_replicas: int
    dashboard: bool


def run(settings: ServerSettings, launch: Launch, haproxy: HAProxy | None, on_ready: Callable[[], None]) -> None:
    """Start a local Ray and serve on it until SIGTERM or SIGINT. Needs the variables of `environment.py`.

    `haproxy` is Ray's HAProxy; without it the replica, which must be the only one, listens itself. `on_ready` is called
    when it serves. Raises StartupError.
    """
    with replica_log.forwarding() as variables:
        os.environ.update(variables)  # Ray's processes inherit them
        os.environ[environment.LAUNCHER_OUTPUT] = f"/proc/{os.getpid()}/fd/1"
        try:
            handle = _start(settings, launch, listens_itself=haproxy is None)
            asyncio.run(_serve(handle, settings, launch, haproxy, on_ready))
        except (KeyboardInterrupt, SystemExit):  # SIGINT, SIGTERM
            return  # no caller was let in yet
        finally:
            ray.shutdown()


async def _serve(
    handle: DeploymentHandle[Any],
    settings: ServerSettings,
    launch: Launch,
    haproxy: HAProxy | None,
    on_ready: Callable[[], None],
) -> None:
    lifecycle = ReplicaLifecycle(
        _Replicas(handle, settings.api.drain_timeout_s),
        [] if haproxy is None else [haproxy],
        lame_duck_s=settings.api.lame_duck_s,
        last_bytes_s=LAST_BYTES_S,
    )
    watching = asyncio.create_task(_watch(lifecycle, launch.num_replicas))
    try:
        await lifecycle.run(lambda: _announce(on_ready))
    finally:
        watching.cancel()


def _announce(on_ready: Callable[[], None]) -> None:
    try:
        on_ready()
    except (OSError, ValueError, LookupError) as error:
        raise StartupError(
            f"the models were ready, but the server does not answer: {error}; a replica may have ended just after its "
            "start. --log-level info shows the log of the replicas"
        ) from error


def how_to_look_inside(dashboard: str | None) -> str:
    """One line: how to see the state of the application. `dashboard` is HOST:PORT of Ray's dashboard, where it runs."""
    if not dashboard:
        return "to look inside, start with --dashboard: `serve status`, `serve deploy` and Ray's dashboard need it"
    return (
        f"to look inside: export RAY_AUTH_MODE=token RAY_DASHBOARD_ADDRESS=http://{dashboard}, then `serve status`; "
        "Ray's dashboard, at that address, asks for the token, the content of ~/.ray/auth_token"
    )


async def _watch(lifecycle: ReplicaLifecycle, num_replicas: int) -> None:
    """Say what becomes of the replicas, until the stop."""
    watch = ReplicaWatch(num_replicas)
    while not lifecycle.is_stopping:
        with contextlib.suppress(Exception):  # Ray is busy, or goes down
            found = (await asyncio.to_thread(serve.status)).applications[APP_NAME]
            for level, line in watch.observe(found.status, *replicas_in(found, DEPLOYMENT_NAME)):
                if not lifecycle.is_stopping:
                    _log.log(level, line)
        await asyncio.sleep(_WATCH_INTERVAL_S)


@contextlib.contextmanager
def _starting_ray() -> Iterator[None]:
    """Ray gives its own parts half a minute and has no setting for it; on a busy machine that can be too short."""
    try:
        yield
    except Exception as error:
        raise StartupError(f"Ray did not start: {last_line(str(error)) or repr(error)}") from error


def _start(settings: ServerSettings, launch: Launch, *, listens_itself: bool) -> DeploymentHandle[Any]:
    _start_ray(settings, launch)
    keep_alive_s = math.ceil(settings.api.keep_alive_s)
    # The loopback in any case: HAProxy is given the address that was asked for by `haproxy_exec.py`.
    options = {"host": _LOOPBACK, "port": launch.port, "keep_alive_timeout_s": keep_alive_s}
    with _starting_ray():
        serve.start(proxy_location="Disabled" if listens_itself else "HeadOnly", http_options=options)
    address = (launch.host, launch.port) if listens_itself else None
    target = deployment_of(settings, launch.num_replicas).bind(settings, address)
    try:
        return serve.run(target, name=APP_NAME, route_prefix="/")
    except RuntimeError:
        raise StartupError(_cause()) from None


def _start_ray(settings: ServerSettings, launch: Launch) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _starting_ray():
        started = ray.init(
            address="local",
            num_cpus=max(len(os.sched_getaffinity(0)), launch.num_replicas),
            include_dashboard=launch.dashboard,
            dashboard_host=_LOOPBACK,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
        )
    # Ray takes the next free port where another process has 8265.
    # Whoever asked for the dashboard is told at the default level.
    _log.log(logging.WARNING if launch.dashboard else logging.INFO, how_to_look_inside(started.dashboard_url))
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # Ray's own prints a stack
    num_gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if settings.engine.device.startswith("cuda") and num_gpus < launch.num_replicas:
        # Ray would wait for more to join the cluster.
        raise StartupError(f"{launch.num_replicas} GPU(s) are needed, one for each replica, and Ray sees {num_gpus}")


def _cause() -> str:
    """Why the deployment failed: the last line of what its constructor raised."""
    application = serve.status().applications[APP_NAME]
    for deployment in application.deployments.values():
        if raised := raised_in(deployment.message):
            return raised
    return last_line(application.message)


class _Replicas:
    """Every replica of the deployment, asked by broadcasts (`lifecycle.Served`)."""

    is_lost = False  # Ray replaces a replica that is

    def __init__(self, handle: DeploymentHandle[Any], drain_timeout_s: float) -> None:
        self._handle = handle
        self._drain_timeout_s = drain_timeout_s

    async def start(self) -> None:
        """Asked now, so that the handle knows its replicas when they are to stop."""
        await self._ask_all("check_health", _CALL_TIMEOUT_S)

    async def enter_lame_duck(self) -> None:
        await self._ask_all("enter_lame_duck", _CALL_TIMEOUT_S)

    async def drain(self) -> None:
        """Each replica answers what it admitted, and closes."""
        await self._ask_all("stop", self._drain_timeout_s + LAST_BYTES_S)

    async def close(self) -> None:
        """Nothing: `stop` closed each replica, and Ray ends the processes."""

    async def _ask_all(self, method: str, timeout_s: float) -> None:
        """A replica that has died has nothing left to answer; the others are asked all the same."""
        try:
            asked = self._handle.broadcast(method)
            outcomes = await asked.results_async(timeout_s=timeout_s, return_exceptions=True)
        except Exception as error:
            outcomes = [error]
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                _log.warning("a replica did not answer to %s: %s", method, last_line(str(outcome)) or repr(outcome))
