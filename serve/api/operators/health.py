"""Liveness, readiness and metrics, for orchestrators and monitoring. These routes are cheap and never fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serve.api.routes import Description, Document, RouteGroup
from serve.replica.interface import ServedModel
from serve.replica.predictor import Predictor

_JSON = "application/json"
_TAG = "operation"

RenderMetrics = Callable[[], Awaitable[bytes]]
"""Gives the text of `/metrics`, where that is more than the metrics of one replica."""


class HealthRoutes(RouteGroup):
    """Live: the process answers. Ready: every model is warmed up, and the replica neither drains nor is a lame duck."""

    def __init__(self, predictor: Predictor, render_metrics: RenderMetrics | None = None) -> None:
        self._predictor = predictor
        self._render_metrics = render_metrics

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/ping", self.ping),
            Route("/metrics", self.metrics),
        ]

    def describe(self, example: ServedModel | None) -> Description:
        del example
        alive: Document = {"200": {"description": "Alive."}}
        ready: Document = {"200": {"description": "Ready."}, "503": {"description": "Starting, draining or closed."}}
        text: Document = {"200": {"description": "The text format.", "content": {"text/plain": {}}}}
        paths = {
            "/v2/health/live": _operation("live", "Is the process alive?", alive),
            "/v2/health/ready": _operation("ready", "Is every model ready?", ready),
            "/ping": _operation("ping", "The same as ready, without a body (SageMaker)", ready),
            "/metrics": _operation("metrics", "Metrics for Prometheus", text),
        }
        return Description(paths, tags=[{"name": _TAG, "description": "For orchestrators and monitoring."}])

    def _status(self) -> int:
        return 200 if self._predictor.is_ready else 503

    async def live(self, _: Request) -> Response:
        """200 as long as the process answers."""
        return Response(b'{"live":true}', media_type=_JSON)

    async def ready(self, _: Request) -> Response:
        """200 while the replica serves, else 503."""
        status = self._status()
        return Response(msgspec.json.encode({"ready": status == 200}), status, media_type=_JSON)

    async def ping(self, _: Request) -> Response:
        """The status of `ready`, without a body."""
        return Response(status_code=self._status())

    async def metrics(self, _: Request) -> Response:
        """The metrics in the text format of Prometheus."""
        render = self._render_metrics
        text = self._predictor.telemetry.prometheus.render() if render is None else await render()
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


def _operation(name: str, summary: str, responses: Document) -> dict[str, Document]:
    return {"get": {"operationId": name, "summary": summary, "tags": [_TAG], "responses": responses}}
