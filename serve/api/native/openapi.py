"""The native door's part of the OpenAPI document. Schemas come from `schemas.py`, errors from `statuses.STATUSES`."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from serve.api.errors import (
    HeadersTooLarge,
    InvalidHeader,
    InvalidJson,
    InvalidRequest,
    RequestTimeout,
    TooManyConnections,
    UnsupportedMediaType,
)
from serve.api.native import problems, schemas
from serve.api.openapi import json_response, schema_ref
from serve.api.request_headers import (
    MAX_REQUEST_ID_CHARS,
    MAX_TIMEOUT_MS,
    PRIORITY_HEADER,
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
)
from serve.api.routes import Description, Document
from serve.api.statuses import STATUSES
from serve.core import Priority
from serve.core.errors import (
    DeadlineExceeded,
    DeadlineTooShort,
    Draining,
    EngineError,
    InvalidInput,
    NotReady,
    Overloaded,
    ServeError,
    TooLarge,
    UnknownModel,
)
from serve.replica.interface import ServedModel

MODELS_PATH = "/v1/models"
MODEL_PATH = f"{MODELS_PATH}/{{model}}"
VERSION_PATH = f"{MODEL_PATH}/versions/{{version}}"
PREDICT_PATH = f"{MODEL_PATH}/predict"
PREDICT_VERSION_PATH = f"{VERSION_PATH}/predict"

_TAGS = [
    {"name": "predict", "description": "Rows in, probabilities or values out."},
    {"name": "models", "description": "The served models and their inputs."},
]
_INTRODUCTION = """\
    {curl}

Errors are `application/problem+json` with a stable `code`. `row` (from 0) and `column` name a bad cell. Every answer
carries `x-request-id`: the caller's own, or a new one."""

_FALLBACK_EXAMPLE = {"amount": 129.95, "country": "DE"}

_PREDICT_ERRORS = (
    InvalidJson, UnknownModel, TooLarge, UnsupportedMediaType, InvalidInput, DeadlineTooShort, Overloaded, EngineError,
    NotReady, Draining, DeadlineExceeded, InvalidRequest, RequestTimeout, HeadersTooLarge, TooManyConnections,
)  # fmt: skip


def describe(model: ServedModel | None) -> Description:
    """The native door's part; its examples are the example record of `model`."""
    name = "MODEL" if model is None else model.name
    record = model.definition.example if model is not None and model.definition.example else _FALLBACK_EXAMPLE
    model_parameter = _path_parameter("model", "Name of a served model.", None if model is None else name)
    version_parameter = _path_parameter(
        "version", "Its version. Another version than the served one is answered with 404.",
        None if model is None else model.definition.version,
    )  # fmt: skip
    of_model, of_version = [model_parameter], [model_parameter, version_parameter]
    paths: dict[str, dict[str, Document]] = {
        PREDICT_PATH: {"post": _predict("predict", of_model, record)},
        PREDICT_VERSION_PATH: {"post": _predict("predict_version", of_version, record)},
        MODELS_PATH: {"get": _list_models()},
        MODEL_PATH: {"get": _describe_model("describe_model", of_model)},
        VERSION_PATH: {"get": _describe_model("describe_version", of_version)},
    }
    return Description(paths, _schemas(record), _TAGS, _INTRODUCTION.format(curl=_curl(name, record)))


def _schemas(record: Mapping[str, Any]) -> dict[str, Document]:
    kinds = (*schemas.COMPONENTS, problems.Problem)
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    # Swagger UI fills a new request from the example of the schema, not from the first of the named examples.
    components["Query"]["example"] = {"records": [dict(record)]}
    return components


def _predict(operation_id: str, path_parameters: list[Document], record: Mapping[str, Any]) -> Document:
    body = {"schema": schema_ref("Query"), "examples": _examples(record)}
    return {
        "summary": "Predict rows",
        "operationId": operation_id,
        "tags": ["predict"],
        "description": "All rows of a request are answered together, in their order.",
        "parameters": [*path_parameters, _REQUEST_ID, _TIMEOUT, _PRIORITY],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": json_response("One prediction per row.", "ClassificationAnswer", "RegressionAnswer"),
            **problem_responses(*_PREDICT_ERRORS),
        },
    }


def _list_models() -> Document:
    return {
        "summary": "List the models",
        "operationId": "list_models",
        "tags": ["models"],
        "parameters": [_REQUEST_ID],
        "responses": {"200": json_response("Every served model.", "ModelList"), **problem_responses(NotReady)},
    }


def _describe_model(operation_id: str, path_parameters: list[Document]) -> Document:
    return {
        "summary": "Describe a model",
        "operationId": operation_id,
        "tags": ["models"],
        "description": "Its inputs, its classes, and an `example` record that can be posted as it is.",
        "parameters": [*path_parameters, _REQUEST_ID],
        "responses": {
            "200": json_response("The model.", "ModelDescription"),
            **problem_responses(UnknownModel, NotReady),
        },
    }


def problem_responses(*kinds: type[ServeError]) -> dict[str, Document]:
    """The documented responses to these errors and to an invalid header, by status."""
    codes: dict[int, list[str]] = {}
    every: tuple[type[ServeError], ...] = (*kinds, InvalidHeader)
    for kind in every:
        codes.setdefault(STATUSES[kind].http, []).append(kind.code)
    return {str(status): _problem_response(status, sorted(names)) for status, names in sorted(codes.items())}


def _problem_response(status: int, codes: list[str]) -> Document:
    example = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status}
    example |= {"detail": "what is wrong", "code": codes[0], "request_id": "0d5c1f0e6f6b4c0f9a3b2f8f0a7c9e11"}
    content = {problems.MEDIA_TYPE: {"schema": schema_ref("Problem"), "example": example}}
    return {"description": " or ".join(f"`{code}`" for code in codes), "content": content}


def _path_parameter(name: str, description: str, example: str | None) -> Document:
    parameter: Document = {"name": name, "in": "path", "required": True, "description": description}
    parameter["schema"] = {"type": "string"}
    return parameter if example is None else parameter | {"example": example}


def _header(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_REQUEST_ID = _header(
    REQUEST_ID_HEADER,
    f"1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters. The answer repeats it in its header and body.",
    {"type": "string", "minLength": 1, "maxLength": MAX_REQUEST_ID_CHARS},
)
_TIMEOUT = _header(
    TIMEOUT_HEADER,
    "Milliseconds after which the answer is of no use. A request that would be late is refused at once (429), or "
    "with 422 where its rows take longer than that on an idle server too; a request whose time has passed is answered "
    "with 504. Without this header, the model's `default_timeout_ms` holds.",
    {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
)
_PRIORITY = _header(
    PRIORITY_HEADER,
    "`bulk` rows fill the batches that `interactive` rows leave room in.",
    {"type": "string", "enum": [priority.value for priority in Priority], "default": Priority.INTERACTIVE.value},
)


def _curl(name: str, record: Mapping[str, Any]) -> str:
    body = json.dumps({"records": [dict(record)]}, ensure_ascii=False).replace("'", "'\\''")
    url = f"http://127.0.0.1:8080{PREDICT_PATH.format(model=name)}"
    return f"curl {url} \\\n      -H 'Content-Type: application/json' -d '{body}'"


def _examples(record: Mapping[str, Any]) -> Document:
    table = {"columns": list(record), "data": [list(record.values())]}
    return {
        "records": {"summary": "records: one object per row", "value": {"records": [dict(record)]}},
        "table": {"summary": "columns and data: one list per row", "value": table},
    }
