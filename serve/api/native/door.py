"""The native door: predictions at `POST /v1/models/{model}[/versions/{version}]/predict`, and the models."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serve.api.door import Door, RawHeaders, RequestHead
from serve.api.native import openapi
from serve.api.native.json_body import check_media_type, decode_table, encode_answer
from serve.api.native.problems import respond
from serve.api.native.schemas import ModelList, describe_model, summarise
from serve.api.routes import Description, prediction_route
from serve.core import ModelReference, Prediction, PredictRequest
from serve.replica.interface import Replica, ServedModel

_JSON = "application/json"
_JSON_BYTES = _JSON.encode()
_PREDICT = re.compile(r"/v1/models/([^/]+)(?:/versions/([^/]+))?/predict")


class _JsonAnswer(Response):
    """Starlette's response, made in a third of the time: its own constructor takes as long as the JSON inside."""

    def __init__(self, body: bytes) -> None:
        self.status_code, self.background = 200, None
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", _JSON_BYTES)]


class NativeDoor(Door):
    """JSON, decoded and encoded once by msgspec."""

    prefixes = ("/v1/",)
    decisive_headers = frozenset({b"content-type", b"content-encoding"})

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def match(self, method: str, path: str, headers: RawHeaders) -> ModelReference | None:
        del headers
        if method != "POST":
            return None
        found = _PREDICT.fullmatch(path)
        return None if found is None else ModelReference(*found.groups())

    def check_headers(self, headers: Headers) -> None:
        check_media_type(headers)

    def read(self, head: RequestHead, body: bytes) -> PredictRequest:
        table = decode_table(body)
        return PredictRequest(head.reference, table, head.arrived_at, head.deadline, head.priority, head.request_id)

    def write(self, model: ServedModel, request: PredictRequest, prediction: Prediction, total_ms: float) -> Response:
        return _JsonAnswer(encode_answer(model, prediction, request.request_id, total_ms))

    def render(self, error: BaseException, request_id: str) -> Response:
        return respond(error, request_id)

    def describe(self, example: ServedModel | None) -> Description:
        return openapi.describe(example)

    def routes(self) -> Sequence[BaseRoute]:
        return [
            prediction_route(openapi.PREDICT_PATH),
            prediction_route(openapi.PREDICT_VERSION_PATH),
            Route(openapi.MODELS_PATH, self.list_models),
            Route(openapi.MODEL_PATH, self.describe_model),
            Route(openapi.VERSION_PATH, self.describe_model),
        ]

    async def list_models(self, _: Request) -> Response:
        """Every served model. Raises NotReady."""
        models = ModelList([summarise(model) for model in self._replica.models()])
        return Response(msgspec.json.encode(models), media_type=_JSON)

    async def describe_model(self, request: Request) -> Response:
        """One model, or one version of it. Raises NotReady, UnknownModel."""
        path = request.path_params
        description = describe_model(
            self._replica.model(ModelReference(path["model"], path.get("version"))),
            max_rows=self._replica.settings.batching.max_request_rows,
            device=self._replica.device,
        )
        return Response(msgspec.json.encode(description), media_type=_JSON)
