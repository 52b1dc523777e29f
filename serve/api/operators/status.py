"""`GET /v1/status`: what the replica says of itself, as JSON."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from serve.api.native.door import RawRoute
from serve.replica.predictor import Predictor

PATH = "/v1/status"


def mount(app: FastAPI, predictor: Predictor) -> None:
    """Add the route. It answers before the models are loaded and while the replica drains, too."""

    async def status(_: Request) -> Response:
        return Response(msgspec.json.encode(predictor.snapshot()), media_type="application/json")

    app.router.add_api_route(
        PATH,
        status,
        methods=["GET"],
        route_class_override=RawRoute,
        response_class=Response,
        summary="State, models, queue, device and costs of this replica",
        responses={200: {"description": "The replica that answered, at this moment."}},
        tags=["operation"],
    )
