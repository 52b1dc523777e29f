"""The native door: `POST /v1/models/{model}/predict` and the list of models.

FastAPI documents the routes and reads nothing: a prediction is bare ASGI that never reaches it (`asked_model`), the
others are Starlette handlers behind `RawRoute`. A body is decoded once, by msgspec. Every prediction request is counted
exactly once, whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api import openapi
from serve.api.middleware.disconnect import run_while_connected
from serve.api.native.json_body import check_media_type, decode_table
from serve.api.native.schemas import ModelList, describe_model, encode_answer, summarise
from serve.api.problems import CALLER_ERRORS, INTERNAL_ERROR, respond
from serve.api.request_headers import read_deadline_and_priority
from serve.core import ModelReference, PredictRequest
from serve.replica.large_requests import SMALL_BYTES
from serve.replica.predictor import Predictor

UNKNOWN_MODEL_LABEL = "unknown"
"""The metrics' `model` where no known model was asked for, so that callers cannot invent series."""

_CLIENT_CLOSED_REQUEST = 499
_JSON = "application/json"
_PREDICT_START, _PREDICT_END = openapi.PREDICT_PATH.split("{model}")


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def asked_model(method: str, path: str) -> str | None:
    """The model of a request for predictions; None for every other request."""
    if method != "POST" or not (path.startswith(_PREDICT_START) and path.endswith(_PREDICT_END)):
        return None
    name = path[len(_PREDICT_START) : -len(_PREDICT_END)]
    return name if name and "/" not in name else None


class RawRoute(APIRoute):
    """A route whose endpoint takes the request and gives the response, with nothing of FastAPI's in between."""

    def get_route_handler(self) -> Handler:
        handler: Handler = self.endpoint
        return handler


class NativeDoor:
    """The handlers. Errors of `predict` are answered here, since they are counted; the others' by the app."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._recorder = predictor.recorder

    def mount(self, app: FastAPI) -> None:
        self._add(app, "POST", openapi.PREDICT_PATH, _documented_only, openapi.PREDICT)
        self._add(app, "GET", "/v1/models", self.list_models, openapi.LIST_MODELS)
        self._add(app, "GET", "/v1/models/{model}", self.describe_model, openapi.DESCRIBE_MODEL)

    def _add(self, app: FastAPI, method: str, path: str, handler: Handler, docs: openapi.Document) -> None:
        app.router.add_api_route(
            path, handler, methods=[method], route_class_override=RawRoute, response_class=Response, **docs
        )

    async def predict(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for predictions of the model `name`."""
        arrived_at = time.monotonic()
        label, outcome = UNKNOWN_MODEL_LABEL, INTERNAL_ERROR
        request_id: str = scope["state"]["request_id"]
        try:
            reference = ModelReference(name)
            model = self._predictor.model(reference)
            label = model.name
            timeout_s, priority = read_deadline_and_priority(scope["headers"])
            check_media_type(Headers(scope=scope))
            body = await _read_body(receive)
            is_large = len(body) > SMALL_BYTES
            large_requests = self._predictor.large_requests
            table = await large_requests.run(is_large, decode_table, body)
            deadline = arrived_at + (model.timeout_s if timeout_s is None else timeout_s)
            request = PredictRequest(reference, table, arrived_at, deadline, priority, request_id)
            prediction = await run_while_connected(self._predictor.predict(request), receive)
            total_ms = 1e3 * (time.monotonic() - arrived_at)
            content = await large_requests.run(is_large, encode_answer, model, prediction, request_id, total_ms)
            outcome = "ok"
            response = Response(content, media_type=_JSON)
        except CALLER_ERRORS as error:
            outcome = error.code
            response = respond(error, request_id)
        except ClientDisconnect:
            outcome = "client_disconnected"
            response = Response(status_code=_CLIENT_CLOSED_REQUEST)  # the caller has gone
        except asyncio.CancelledError:  # the server gave up on the connection
            outcome = "cancelled"
            raise
        finally:
            self._recorder.answered(label, outcome, time.monotonic() - arrived_at)
        await response(scope, receive, send)

    async def list_models(self, _: Request) -> Response:
        models = ModelList([summarise(model) for model in self._predictor.models()])
        return Response(msgspec.json.encode(models), media_type=_JSON)

    async def describe_model(self, request: Request) -> Response:
        settings = self._predictor.settings
        description = describe_model(
            self._predictor.model(ModelReference(request.path_params["model"])),
            max_rows=settings.batching.max_request_rows,
            device=self._predictor.device,
        )
        return Response(msgspec.json.encode(description), media_type=_JSON)


async def _read_body(receive: Receive) -> bytes:
    """Raises ClientDisconnect."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _documented_only(_: Request) -> Response:
    raise AssertionError("this is a bug: predictions are answered before the router")
