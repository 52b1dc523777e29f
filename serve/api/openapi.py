"""The OpenAPI document: joins what each group of routes says of itself.

OpenAPI 3.0, because the bundled Swagger UI reads no newer version. The document is built once before models are served
and once afterwards. From then on its examples are a real record of a real model, so that "Try it out" on /docs works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import serve
from serve.api.routes import Description, Document, RouteGroup
from serve.core import ServerState
from serve.replica.predictor import Predictor

TITLE = "tabpfn-serve"
VERSION = "3.0.3"
_INTRODUCTION = """\
TabPFN in real time: the server joins the rows of concurrent callers into one forward pass. Each caller gets the answer
that its rows would get alone."""


def schema_ref(name: str) -> Document:
    """A reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_response(description: str, *names: str) -> Document:
    """A response in JSON with the schema `name`, or with one of several."""
    refs = [schema_ref(name) for name in names]
    schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


class OpenApi:
    """The document of one app."""

    def __init__(self, predictor: Predictor, groups: Sequence[RouteGroup]) -> None:
        self._predictor = predictor
        self._groups = tuple(groups)
        self._documents: dict[str | None, Document] = {}

    def document(self) -> Document:
        """The document of now. The caller must not change it."""
        served = self._predictor.models() if self._predictor.state is not ServerState.STARTING else []
        example = next((model for model in served if model.definition.example), None)
        name = None if example is None else example.name
        if name not in self._documents:
            self._documents[name] = join([group.describe(example) for group in self._groups])
        return self._documents[name]


def join(parts: Sequence[Description]) -> Document:
    """One document of all parts. Raises ValueError where two parts use one path or one name for different things."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for part in parts:
        _add(paths, part.paths, "path")
        _add(schemas, part.schemas, "schema")
    introductions = [part.introduction for part in parts if part.introduction]
    return {
        "openapi": VERSION,
        "info": {
            "title": TITLE,
            "version": serve.__version__,
            "description": "\n\n".join([_INTRODUCTION, *introductions]),
        },
        "tags": [tag for part in parts for tag in part.tags],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _add(joined: dict[str, Any], part: Any, kind: str) -> None:
    for name, value in part.items():
        if joined.setdefault(name, value) != value:
            raise ValueError(f"two groups of routes describe the {kind} {name} differently")
