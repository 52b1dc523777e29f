"""Assembles the ASGI app: doors, errors, limits, and the replica's life.

The same app runs under uvicorn and inside the Ray replica. Layers, from the outside: `Edge` (request id, last resort),
`BodyLimit`, then for a prediction the native door itself, for all else FastAPI's router. FastAPI's own layers are a
fifth of what a prediction costs here (docs/decisions/001-cost-of-the-front.md), and it needs none of them.
The lifespan is the replica's life: the app serves nothing before the predictor has started, and when the server stops,
what was admitted is answered first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import serve
from serve.api import openapi
from serve.api.middleware.body_limit import BodyLimit
from serve.api.middleware.early_refusal import EarlyRefusal
from serve.api.middleware.request_id import Edge
from serve.api.native.door import UNKNOWN_MODEL_LABEL, NativeDoor, asked_model
from serve.api.operators import docs, status
from serve.api.operators.health import HealthDoor
from serve.api.problems import CALLER_ERRORS, from_http, respond
from serve.core.errors import ServeError
from serve.replica.lifecycle import ReplicaLifecycle, lifecycle_of
from serve.replica.predictor import Predictor


class App(FastAPI):
    """FastAPI whose requests come through `layers` first, and those that nobody will read, through `refuse_early`."""

    layers: ASGIApp
    refuse_early: EarlyRefusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.layers if scope["type"] == "http" else super().__call__)(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's own part."""
        await super().__call__(scope, receive, send)


def create_app(
    predictor: Predictor,
    *,
    answers_request_id: bool = True,
    lifecycle: ReplicaLifecycle | None = None,
    render_metrics: Callable[[], Awaitable[bytes]] | None = None,
) -> App:
    """The app of one replica. Its lifespan starts and stops `lifecycle`, or one of `predictor` alone.

    `answers_request_id=False` leaves the `x-request-id` of the answer to the server around the app. `render_metrics`
    gives the text of `/metrics`, where that is more than the metrics of this replica.
    """
    app = App(
        title="tabpfn-serve",
        version=serve.__version__,
        lifespan=_lifespan(predictor, lifecycle),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    native = NativeDoor(predictor)
    native.mount(app)
    HealthDoor(predictor, render_metrics).mount(app)
    status.mount(app, predictor)
    docs.mount(app)
    openapi.install(app, predictor)
    _answer_errors(app)

    def count_refused(error: ServeError) -> None:
        predictor.recorder.answered(UNKNOWN_MODEL_LABEL, error.code, 0.0)

    async def take(scope: Scope, receive: Receive, send: Send) -> None:
        name = asked_model(scope["method"], scope["path"])
        if name is None:
            await app.route(scope, receive, send)
        else:
            await native.predict(name, scope, receive, send)

    limited = BodyLimit(take, predictor.settings.api.max_body_bytes, count_refused)
    app.layers = Edge(limited, answers_request_id=answers_request_id)
    app.refuse_early = EarlyRefusal(predictor)
    return app


def _lifespan(
    predictor: Predictor, lifecycle: ReplicaLifecycle | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        life = lifecycle_of(predictor) if lifecycle is None else lifecycle
        await life.start()
        try:
            yield
        finally:
            await life.stop()

    return lifespan


def _answer_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        return respond(error, request.state.request_id)

    async def answer_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(from_http(error, request.method, request.url.path), request.state.request_id, error.headers)

    for kind in CALLER_ERRORS:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_http)
