"""What orchestrators and monitoring ask: alive, ready, the metrics. Cheap, and never an error by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from serve.api.native.door import Handler, RawRoute
from serve.replica.predictor import Predictor

_JSON = "application/json"

Responses = dict[int | str, dict[str, Any]]


class HealthDoor:
    """Live: the process answers. Ready: every model is warmed up and the replica is not draining."""

    def __init__(self, predictor: Predictor, render_metrics: Callable[[], Awaitable[bytes]] | None = None) -> None:
        self._predictor = predictor
        self._render_metrics = render_metrics

    def mount(self, app: FastAPI) -> None:
        alive: Responses = {200: {"description": "Alive."}}
        ready: Responses = {200: {"description": "Ready."}, 503: {"description": "Starting, draining or closed."}}
        text: Responses = {200: {"description": "The text format.", "content": {"text/plain": {}}}}
        self._add(app, "/v2/health/live", self.live, "Is the process alive?", alive)
        self._add(app, "/v2/health/ready", self.ready, "Is every model ready?", ready)
        self._add(app, "/ping", self.ping, "The same as ready, without a body (SageMaker)", ready)
        self._add(app, "/metrics", self.metrics, "Metrics for Prometheus", text)

    def _add(self, app: FastAPI, path: str, handler: Handler, summary: str, responses: Responses) -> None:
        app.router.add_api_route(
            path,
            handler,
            methods=["GET"],
            route_class_override=RawRoute,
            response_class=Response,
            summary=summary,
            responses=responses,
            tags=["operation"],
        )

    def _status(self) -> int:
        return 200 if self._predictor.is_ready else 503

    async def live(self, _: Request) -> Response:
        return Response(b'{"live":true}', media_type=_JSON)

    async def ready(self, _: Request) -> Response:
        status = self._status()
        return Response(msgspec.json.encode({"ready": status == 200}), status, media_type=_JSON)

    async def ping(self, _: Request) -> Response:
        return Response(status_code=self._status())

    async def metrics(self, _: Request) -> Response:
        render = self._render_metrics
        text = self._predictor.telemetry.prometheus.render() if render is None else await render()
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})
