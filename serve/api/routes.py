"""A group of routes with its part of the OpenAPI document: the base of every door and of the routes for operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serve.replica.interface import ServedModel

Document = dict[str, Any]
"""A part of an OpenAPI document, as JSON will show it."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a group of routes says of itself in the OpenAPI document.

    Attributes:
        paths: path to method (lower case) to OpenAPI operation object.
        schemas: name to JSON schema, for references to `#/components/schemas/NAME`.
        tags: OpenAPI tag objects.
        introduction: Markdown for the head of the page.
    """

    paths: Mapping[str, Mapping[str, Document]] = field(default_factory=dict)
    schemas: Mapping[str, Document] = field(default_factory=dict)
    tags: Sequence[Document] = ()
    introduction: str = ""


class RouteGroup(ABC):
    """Routes that belong together."""

    @abstractmethod
    def routes(self) -> Sequence[BaseRoute]:
        """The routes for the router. Errors that a handler raises are rendered by the door that owns the path."""

    def describe(self, example: ServedModel | None) -> Description:
        """The part of the OpenAPI document; nothing unless a subclass says more.

        Args:
            example: a served model whose definition has an example record; None before models are served.
        """
        del example
        return Description()


def prediction_route(path: str) -> Route:
    """A route for predictions, so that the router answers other methods at `path` with 405.

    The requests themselves are served before the router. One that does come here shows that the door documents a
    path which its `match` does not recognise.
    """
    return Route(path, _refuse_unmatched, methods=["POST"])


async def _refuse_unmatched(request: Request) -> Response:
    raise RuntimeError(f"no door matches {request.method} {request.url.path}, which one of them documents")
