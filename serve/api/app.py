"""Assembles the ASGI app: doors, errors, limits, and the replica's life.

The same app runs under uvicorn and inside the Ray replica. Layers, from the outside: `Edge` (request id, last resort),
`BodyLimit`, the router. The lifespan is the replica's life: the app serves nothing before the predictor has started,
and when the server stops, what was admitted is answered first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import serve
from serve.api import docs, openapi
from serve.api.body import BodyLimit
from serve.api.edge import Edge
from serve.api.health import HealthDoor
from serve.api.native import UNKNOWN_MODEL_LABEL, NativeDoor
from serve.api.problems import CALLER_ERRORS, from_http, respond
from serve.core import ServerState
from serve.errors import ServeError
from serve.predictor import Predictor


def create_app(predictor: Predictor) -> FastAPI:
    """The app of one replica. Its lifespan starts, drains and closes `predictor`; an error of the start is raised."""
    app = FastAPI(
        title="tabpfn-serve",
        version=serve.__version__,
        lifespan=_lifespan(predictor),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    NativeDoor(predictor).mount(app)
    HealthDoor(predictor).mount(app)
    docs.mount(app)
    openapi.install(app, predictor)
    _answer_errors(app)

    def count_refused(error: ServeError) -> None:
        predictor.metrics.requests.labels(UNKNOWN_MODEL_LABEL, error.code).inc()

    app.add_middleware(BodyLimit, max_body_bytes=predictor.settings.api.max_body_bytes, on_refused=count_refused)
    app.add_middleware(Edge)
    return app


def _lifespan(predictor: Predictor) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            if predictor.state is ServerState.STARTING:
                await predictor.start()
            yield
            await predictor.drain()
        finally:
            await predictor.close()

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
