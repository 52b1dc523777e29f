"""Assembles the ASGI app of one replica: doors, routes for operators, limits, and the replica's life.

The same app runs under uvicorn and inside the Ray replica. Its layers, from the outside: `Predictions` serves the
requests for predictions; every other request passes `RequestId` and `BodyLimit` to Starlette's router.

The lifespan of the app is the life of the replica. Nothing is served before the predictor has started. When the server
stops, the admitted requests are answered first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from serve.api.door import Door, render_by_owner, render_unrouted
from serve.api.errors import from_http
from serve.api.fast_path import FastPath
from serve.api.middleware.request_body import BodyLimit
from serve.api.middleware.request_id import RequestId
from serve.api.native.door import NativeDoor
from serve.api.openapi import OpenApi
from serve.api.operators.docs import DocsRoutes
from serve.api.operators.health import HealthRoutes, RenderMetrics
from serve.api.operators.status import StatusRoutes
from serve.api.predictions import Predictions
from serve.api.routes import RouteGroup
from serve.api.statuses import CALLER_ERRORS
from serve.core.errors import ServeError
from serve.replica.interface import Replica
from serve.replica.lifecycle import ReplicaLifecycle, lifecycle_of
from serve.replica.predictor import Predictor

DOORS: tuple[Callable[[Replica], Door], ...] = (NativeDoor,)
"""Every door. The first one renders the errors at paths that no door owns."""


class App(Starlette):
    """The ASGI app, and `fast_path`, which a server that can asks by the headers of each request."""

    def __init__(
        self,
        predictor: Predictor,
        doors: Sequence[Door],
        operators: Sequence[RouteGroup],
        *,
        answers_request_id: bool,
        lifecycle: ReplicaLifecycle | None,
    ) -> None:
        docs = DocsRoutes(OpenApi(predictor, [*doors, *operators]))
        routes = [route for group in (*doors, *operators, docs) for route in group.routes()]
        super().__init__(routes=routes, lifespan=_lifespan(predictor, lifecycle))
        self.router.redirect_slashes = False
        self._doors = tuple(doors)
        handlers = dict.fromkeys((*CALLER_ERRORS, HTTPException), self._render_routed)
        limited = BodyLimit(
            ExceptionMiddleware(self.router, handlers), predictor.settings.api.max_body_bytes, self._render
        )
        routed = RequestId(limited, self._render, answers_request_id=answers_request_id)
        predictions = Predictions(predictor, doors, routed, answers_request_id=answers_request_id)
        self.fast_path = FastPath(predictor, predictions, doors)
        self.middleware_stack = predictions  # instead of Starlette's own, which it builds at the first request

    def render_unrouted(self, error: ServeError, request_id: str) -> Response:
        """The response to an error that the server around the app found, before there was a request for the app."""
        return render_unrouted(self._doors, error, request_id)

    async def _render_routed(self, request: Request, error: Exception) -> Response:
        """The response to an error of the router or of a handler."""
        if not isinstance(error, HTTPException):
            return self._render(error, request.scope)
        response = self._render(from_http(error, request.method, request.url.path), request.scope)
        response.headers.update(error.headers or {})
        return response

    def _render(self, error: BaseException, scope: Scope) -> Response:
        return render_by_owner(self._doors, error, scope)


def create_app(
    predictor: Predictor,
    *,
    doors: Sequence[Callable[[Replica], Door]] = DOORS,
    answers_request_id: bool = True,
    lifecycle: ReplicaLifecycle | None = None,
    render_metrics: RenderMetrics | None = None,
) -> App:
    """The app of one replica. Its lifespan starts and stops `lifecycle`, and raises the errors of the start.

    Args:
        doors: makes the doors; 1 or more.
        answers_request_id: the app adds `x-request-id` to its answers; the server around the app does it otherwise.
        lifecycle: the replica's life; without it, that of `predictor` alone.
        render_metrics: the text of `/metrics`; without it, the metrics of this replica.
    """
    made = [door(predictor) for door in doors]
    operators = [HealthRoutes(predictor, render_metrics), StatusRoutes(predictor)]
    return App(predictor, made, operators, answers_request_id=answers_request_id, lifecycle=lifecycle)


def _lifespan(
    predictor: Predictor, lifecycle: ReplicaLifecycle | None
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        life = lifecycle_of(predictor) if lifecycle is None else lifecycle
        await life.start()
        try:
            yield
        finally:
            await life.stop()

    return lifespan
