"""The Ray Serve deployment: one replica, and the application that `serve_config.yaml` names.

Theory of operation
-------------------
A replica holds everything: ASGI app, batcher, engine. Ray Serve queues nothing: `max_ongoing_requests` lies far above
the limit of admission, which refuses first. A request reaches a replica in one of two ways:

- The only replica listens itself, or its front processes do (`listener_of`). Ray's server does no work for a request
  (docs/decisions/001-cost-of-the-front.md); Ray contributes placement, health checks and replacement.
- Several replicas stand behind Ray's HAProxy, which routes each request to the replica with the fewest open requests.
  So does a replica of Ray's own `serve run`.

The start: the constructor starts the replica, so Ray calls it running only when every model has passed its checks. A
StartupError ends the deployment at its first try, and the launcher prints its message.

The stop: the launcher broadcasts `stop` to every replica (`launcher.py`). Where Ray itself replaces a replica, it takes
the replica out of HAProxy's list, waits for its open requests, and ends the lifespan of the app. Both take the steps of
the replica's own lifecycle.

One scrape of `/metrics` behind HAProxy reaches one replica. That replica asks all replicas and joins their texts.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.api import App, create_app
from serve.core import ServerState
from serve.core.errors import StartupError
from serve.edges.ray import environment
from serve.edges.sockets import bind
from serve.settings import InvalidSettings, ServerSettings
from serve.settings.sources import read_settings
from serve.telemetry import launcher_log
from serve.telemetry.federation import merge

APP_NAME = "tabpfn-serve"
DEPLOYMENT_NAME = "TabPFNDeployment"

_LOOPBACK = "127.0.0.1"

_SCRAPE_TIMEOUT_S = 2.0
"""How long the replicas have to give their metrics; Prometheus itself waits 10 s by default."""

_log = logging.getLogger(__name__)


@serve.ingress()
class TabPFNDeployment:
    """One replica."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, settings: ServerSettings, address: tuple[str, int] | None = None
    ) -> None:
        """Start the replica; it listens at `address` itself, or, without one, answers Ray's HAProxy.

        Raises StartupError.
        """
        from serve.edges.uvicorn_server import listener_of  # uvicorn, which the launcher does without
        from serve.replica.factory import assemble
        from serve.replica.lifecycle import lifecycle_of

        self._name = serve.get_replica_context().replica_id.unique_id
        os.environ[launcher_log.REPLICA_NAME] = self._name  # the engine's worker inherits it
        launcher_log.write_to_launcher(os.environ)
        _keep_to_loopback()
        self._predictor = assemble(_with_launchers_output(settings))
        listeners = [] if address is None else [listener_of(self._predictor, partial(bind, *address, shared=True))]
        if address is None and settings.api.num_fronts not in (1, "auto"):
            _log.warning("api.num_fronts has no effect here: Ray's server reads the requests of several replicas")
        # No lame duck: the launcher has it, and Ray takes a replica out of HAProxy's list before it replaces it.
        self._lifecycle = lifecycle_of(self._predictor, listeners)
        await self._lifecycle.start()
        self._handle: DeploymentHandle[Any] | None = None

    def __serve_build_asgi_app__(self) -> App:
        # Ray adds the request id to every answer that goes through it, and enters the lifespan in any case.
        return create_app(
            self._predictor, answers_request_id=False, lifecycle=self._lifecycle, render_metrics=self._render_metrics
        )

    def check_health(self) -> None:
        """Asked by Ray; an exception three times in a row has the replica replaced."""
        if self._predictor.failed:
            raise RuntimeError("the batcher has failed, or its batch hangs")
        if self._predictor.state is ServerState.CLOSED:
            raise RuntimeError("the replica is closed")
        if not self._lifecycle.is_open:
            raise RuntimeError("the replica does not listen any more")

    async def enter_lame_duck(self) -> None:
        """Be not ready, and serve."""
        await self._predictor.enter_lame_duck()

    async def stop(self) -> None:
        """Take all steps of the stop: the replica is closed when this returns."""
        await self._lifecycle.stop()

    async def own_metrics(self) -> tuple[str, str]:
        """(name of the replica, text of its metrics)."""
        return self._name, self._predictor.telemetry.prometheus.render().decode()

    async def _render_metrics(self) -> bytes:
        """The metrics of every replica of the deployment that gives them in time."""
        context = serve.get_replica_context()
        try:
            if self._handle is None:
                self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
            response = self._handle.broadcast("own_metrics")
            # Not `results_async`: after its time limit it gives nothing, where this gives what there is.
            found = await asyncio.to_thread(response.results, timeout_s=_SCRAPE_TIMEOUT_S, return_exceptions=True)
        except Exception as error:
            _log.warning("the other replicas cannot be asked for their metrics: %s", error)
            found = [None] * context.world_size
        texts: dict[str, str] = dict(item for item in found if isinstance(item, tuple))
        texts.setdefault(*await self.own_metrics())
        return await asyncio.to_thread(merge, texts, max(len(found), len(texts)))


def _with_launchers_output(settings: ServerSettings) -> ServerSettings:
    """CloudWatch's metrics go to the launcher's output: that of a replica ends in a file of Ray's."""
    output = os.environ.get(environment.LAUNCHER_OUTPUT)
    if output is None or settings.metrics.emf_namespace is None or settings.metrics.emf_path is not None:
        return settings
    return settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"emf_path": Path(output)})})


def _keep_to_loopback() -> None:
    """On a node that is all loopback, bind the replica's port for calls by handle there too.

    Ray 2.60 binds it to all interfaces with no setting against it (`replica.py`, `_on_initialized`, which runs after
    the constructor above); this replaces the one function it binds with, in this process only.
    """
    if ray.util.get_node_ip_address() == _LOOPBACK:  # type: ignore[no-untyped-call]
        module: Any = importlib.import_module("ray.serve._private.replica")
        bind = module.add_port_to_grpc_server
        module.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", _LOOPBACK))


def build(args: dict[str, Any]) -> serve.Application:
    """The application of the settings in `args`, by group, for `serve run` and `serve deploy`.

    Raises:
        StartupError: a setting is wrong; the message is one line that names it. Or the only replica of this cluster
            listens itself: the replica of this application would not, and no caller could reach it.
    """
    try:
        settings = read_settings(args)
    except InvalidSettings as error:
        raise StartupError(str(error)) from None
    if os.environ.get(environment.LONE_REPLICA):
        raise StartupError(
            "this server was started with one replica, which listens itself; a new configuration would replace it by a "
            "replica that no caller reaches. It goes on as it is. Restart with --num-replicas 2 or more, or with "
            "RAY_SERVE_ENABLE_HA_PROXY=1 in the environment, and deploy to that (docs/operations.md)"
        )
    return deployment_of(settings).bind(settings)


def deployment_of(settings: ServerSettings, num_replicas: int = 1) -> serve.Deployment:
    """The deployment of these settings, not bound to its arguments yet."""
    configure = serve.deployment(
        name=DEPLOYMENT_NAME,
        num_replicas=num_replicas,
        # Admission refuses (429) and needs a place here to do it; beyond this number Ray would queue without a limit.
        max_ongoing_requests=4 * settings.batching.ongoing_requests_limit,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(settings.engine.device.startswith("cuda"))},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.api.drain_timeout_s + 10,
        # A model that fails its checks will fail them again.
        max_constructor_retry_count=1,
        logging_config={"enable_access_log": False},
    )
    return configure(TabPFNDeployment)
