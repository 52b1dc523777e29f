"""`/openapi.json`, and `/docs`: Swagger UI from the files of the `swagger-ui-bundle` package, without another host."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from serve.api.openapi import TITLE, OpenApi
from serve.api.routes import RouteGroup

ASSETS_PATH = "/docs/assets"
OPENAPI_PATH = "/openapi.json"

_PARAMETERS = {
    "validatorUrl": None,  # otherwise the page shows a badge from validator.swagger.io
    "tryItOutEnabled": True,
    "displayRequestDuration": True,
    "defaultModelsExpandDepth": 0,
    "docExpansion": "list",
}


class DocsRoutes(RouteGroup):
    """The documentation of the API, for people and for programs. It does not describe itself."""

    def __init__(self, openapi: OpenApi) -> None:
        self._openapi = openapi

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/docs", self.page),
            Route(OPENAPI_PATH, self.document),
            Mount(ASSETS_PATH, StaticFiles(directory=swagger_ui_path), name="docs-assets"),
        ]

    async def page(self, request: Request) -> Response:
        """Swagger UI."""
        root = _root(request)
        assets = f"{root}{ASSETS_PATH}"
        return get_swagger_ui_html(
            openapi_url=f"{root}{OPENAPI_PATH}",
            title=TITLE,
            swagger_js_url=f"{assets}/swagger-ui-bundle.js",
            swagger_css_url=f"{assets}/swagger-ui.css",
            swagger_favicon_url=f"{assets}/favicon-32x32.png",
            swagger_ui_parameters=_PARAMETERS,
        )

    async def document(self, request: Request) -> Response:
        """The OpenAPI document; behind a proxy that strips a path prefix, with that prefix as its server."""
        root = _root(request)
        servers = {"servers": [{"url": root}]} if root else {}
        return JSONResponse({**self._openapi.document(), **servers})


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
