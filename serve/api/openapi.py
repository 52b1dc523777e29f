"""What /openapi.json says. The schemas come from `schemas.py`, the errors from the table in `problems.py`.

OpenAPI 3.0, because the bundled Swagger UI reads no newer one. Once models are served, the example of a request is a
real record of a real model, so that "Try it out" on /docs gives a real answer.
"""

from __future__ import annotations

import copy
import http
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.api import problems
from serve.api.native import schemas
from serve.api.request_headers import MAX_TIMEOUT_MS, PRIORITY_HEADER, TIMEOUT_HEADER
from serve.core import Priority, ServerState
from serve.core.errors import (
    DeadlineExceeded,
    Draining,
    EngineError,
    InvalidInput,
    NotReady,
    Overloaded,
    ServeError,
    TooLarge,
    UnknownModel,
)
from serve.replica.predictor import Predictor, ServedModel

Document = dict[str, Any]

VERSION = "3.0.3"
PREDICT_PATH = "/v1/models/{model}/predict"
TAGS = [
    {"name": "predict", "description": "Rows in, probabilities or values out."},
    {"name": "models", "description": "What is served, and how to ask it."},
    {"name": "operation", "description": "For orchestrators and monitoring."},
]
_DESCRIPTION = """\
TabPFN in real time: rows of concurrent callers are joined into one forward pass, and each caller is answered exactly
what it would have been told alone.

    {curl}

Errors are `application/problem+json` with a stable `code`; a bad cell is named by `row` (from 0) and `column`. Every
answer carries `x-request-id`: the caller's own, or a new one."""

_FALLBACK_EXAMPLE = {"amount": 129.95, "country": "DE"}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, *names: str) -> Document:
    refs = [_ref(name) for name in names]
    schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def problem_responses(*kinds: type[ServeError]) -> dict[int | str, Document]:
    """The documented answers to these errors, by status."""
    codes: dict[int, list[str]] = {}
    every: tuple[type[ServeError], ...] = (*kinds, problems.InvalidHeader)
    for kind in every:
        codes.setdefault(problems.STATUSES[kind], []).append(kind.code)
    return {status: _problem_response(status, sorted(names)) for status, names in sorted(codes.items())}


def _problem_response(status: int, codes: list[str]) -> Document:
    example = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status}
    example |= {"detail": "what is wrong, in words", "code": codes[0], "request_id": "0d5c1f0e6f6b4c0f9a3b2f8f0a7c9e11"}
    content = {problems.MEDIA_TYPE: {"schema": _ref("Problem"), "example": example}}
    return {"description": " or ".join(f"`{code}`" for code in codes), "content": content}


_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "1 to 128 printable ASCII characters; comes back in the answer's header and body.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}

_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Milliseconds after which the answer is of no use. A request that would be late is refused at once "
    "(429), one whose time has passed is answered with 504. The model's `default_timeout_ms` where absent.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
}
_PRIORITY = {
    "name": PRIORITY_HEADER,
    "in": "header",
    "required": False,
    "description": "`bulk` rows take the room that `interactive` ones leave.",
    "schema": {"type": "string", "enum": [priority.value for priority in Priority], "default": "interactive"},
}

PREDICT: Document = {
    "summary": "Predict rows",
    "operation_id": "predict",
    "tags": ["predict"],
    "description": "All rows of a request are answered together, in their order.",
    "responses": {
        200: _json("One prediction per row.", "ClassificationAnswer", "RegressionAnswer"),
        **problem_responses(
            problems.InvalidJson, UnknownModel, TooLarge, problems.UnsupportedMediaType, InvalidInput, Overloaded,
            EngineError, NotReady, Draining, DeadlineExceeded,
        ),
    },
    "openapi_extra": {
        "parameters": [_MODEL, _REQUEST_ID, _TIMEOUT, _PRIORITY],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Query")}}},
    },
}  # fmt: skip
LIST_MODELS: Document = {
    "summary": "List the models",
    "operation_id": "list_models",
    "tags": ["models"],
    "responses": {200: _json("Every model that is served.", "ModelList"), **problem_responses(NotReady)},
}
DESCRIBE_MODEL: Document = {
    "summary": "Describe a model",
    "operation_id": "describe_model",
    "tags": ["models"],
    "description": "Its inputs, its classes, and an `example` record that can be posted as it is.",
    "responses": {
        200: _json("The model.", "ModelDescription"),
        **problem_responses(UnknownModel, NotReady),
    },
    "openapi_extra": {"parameters": [_MODEL]},
}


def install(app: FastAPI, predictor: Predictor) -> None:
    """Let `app.openapi` build the document: once before models are served, once after."""
    documents: dict[str | None, Document] = {}

    def document() -> Document:
        served = predictor.models() if predictor.state is not ServerState.STARTING else []
        model = next((model for model in served if model.definition.example), None)
        name = None if model is None else model.definition.name
        if name not in documents:
            documents[name] = _build(app, model)
        return documents[name]

    replace: Callable[[], Document] = document
    app.openapi = replace  # type: ignore[method-assign]  # FastAPI's documented way


def _build(app: FastAPI, model: ServedModel | None) -> Document:
    name = "MODEL" if model is None else model.definition.name
    record = model.definition.example if model is not None and model.definition.example else _FALLBACK_EXAMPLE
    document: Document = copy.deepcopy(
        get_openapi(
            title=app.title,
            version=app.version,
            openapi_version=VERSION,
            description=_DESCRIPTION.format(curl=_curl(name, record)),
            routes=app.routes,
            tags=TAGS,
        )
    )
    kinds = (*schemas.COMPONENTS, problems.Problem)
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    # Swagger UI fills a new request from the schema's example, not from the first of the named ones.
    components["Query"]["example"] = {"records": [dict(record)]}
    document["components"] = {"schemas": components}
    operation = document["paths"][PREDICT_PATH]["post"]
    operation["requestBody"]["content"]["application/json"]["examples"] = _examples(record)
    if model is not None:
        for path in document["paths"].values():
            for method in path.values():
                for parameter in method.get("parameters", ()):
                    if parameter["name"] == "model":
                        parameter["example"] = name
    return document


def _curl(name: str, record: Mapping[str, Any]) -> str:
    body = json.dumps({"records": [dict(record)]}, ensure_ascii=False).replace("'", "'\\''")
    url = f"http://127.0.0.1:8080/v1/models/{name}/predict"
    return f"curl {url} \\\n      -H 'Content-Type: application/json' -d '{body}'"


def _examples(record: Mapping[str, Any]) -> Document:
    table = {"columns": list(record), "data": [list(record.values())]}
    return {
        "records": {"summary": "records: one object per row", "value": {"records": [dict(record)]}},
        "table": {"summary": "columns and data: one list per row", "value": table},
    }
