"""`GET /v1/status`: the present state of the replica, as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serve.api.routes import Description, RouteGroup
from serve.replica.interface import ServedModel
from serve.replica.predictor import Predictor

PATH = "/v1/status"


class StatusRoutes(RouteGroup):
    """The status answers before the models are loaded and while the replica drains, too."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def routes(self) -> Sequence[BaseRoute]:
        return [Route(PATH, self.status)]

    def describe(self, example: ServedModel | None) -> Description:
        del example
        operation = {
            "operationId": "status",
            "summary": "State, models, queue, device and costs of this replica",
            "tags": ["operation"],
            "responses": {"200": {"description": "The replica that answered, at this moment."}},
        }
        return Description({PATH: {"get": operation}})

    async def status(self, _: Request) -> Response:
        """The snapshot of the replica."""
        return Response(msgspec.json.encode(self._predictor.snapshot()), media_type="application/json")
