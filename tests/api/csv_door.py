"""A second door, as another protocol would be added: rows as plain CSV lines, errors as one line of text.

POST /csv/{model}      amount,age\\n1.5,30\\n,41\\n   ->   0.25,0.75\\n0.5,0.5\\n
"""

# ruff: noqa: ARG002  (the contract has arguments that this door does not need)

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from serve.api.door import Door, RawHeaders, RequestHead
from serve.api.routes import Description, prediction_route
from serve.api.statuses import public_error
from serve.core import ModelReference, Prediction, PredictRequest, QueryTable
from serve.core.errors import InvalidInput
from serve.replica.interface import Replica, ServedModel

_PATH = "/csv/"


class CsvDoor(Door):
    """Numbers only; an empty cell is a missing value."""

    prefixes = (_PATH,)
    decisive_headers = frozenset()

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def match(self, method: str, path: str, headers: RawHeaders) -> ModelReference | None:
        name = path.removeprefix(_PATH)
        return ModelReference(name) if method == "POST" and name != path and "/" not in name else None

    def read(self, head: RequestHead, body: bytes) -> PredictRequest:
        names, *rows = csv.reader(io.StringIO(body.decode()))
        table = QueryTable.from_rows(names, [[_number(cell, row) for cell in cells] for row, cells in enumerate(rows)])
        return PredictRequest(head.reference, table, head.arrived_at, head.deadline, head.priority, head.request_id)

    def write(self, model: ServedModel, request: PredictRequest, prediction: Prediction, total_ms: float) -> Response:
        lines = [",".join(map(repr, row)) for row in prediction.outputs.tolist()]
        return PlainTextResponse("\n".join(lines) + "\n")

    def render(self, error: BaseException, request_id: str) -> Response:
        public = public_error(error)
        return PlainTextResponse(f"{public.code} row={public.row}: {public.detail}\n", public.status.http)

    def describe(self, example: ServedModel | None) -> Description:
        parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        rows = {
            "description": "Probabilities.",
            "content": {"text/csv": {"schema": {"$ref": "#/components/schemas/Csv"}}},
        }
        operation = {"summary": "Predict CSV", "parameters": [parameter], "responses": {"200": rows}}
        help_ = {"summary": "Help", "responses": {"200": {"description": "The header line of the first model."}}}
        return Description(
            {"/csv/{model}": {"post": operation}, "/csv": {"get": help_}},
            schemas={"Csv": {"type": "string"}},
            tags=[{"name": "csv"}],
            introduction="Or as CSV.",
        )

    def routes(self) -> Sequence[BaseRoute]:
        return [prediction_route("/csv/{model}"), Route("/csv", self.help)]

    async def help(self, _: Request) -> Response:
        """The header line of the first model."""
        first = self._replica.models()[0]
        return PlainTextResponse(",".join(column.name for column in first.fitted.columns) + "\n")


def _number(cell: str, row: int) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        raise InvalidInput(f"{cell!r} is not a number", code="wrong_type", row=row) from None
