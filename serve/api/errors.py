"""The errors of HTTP requests that no model takes part in. `core/errors.py` has the others."""

from __future__ import annotations

from starlette.exceptions import HTTPException

from serve.core.errors import ServeError


class InvalidHeader(ServeError):
    """The value of a request header is not valid."""

    code = "invalid_header"


class InvalidJson(ServeError):
    """The body is not JSON in UTF-8."""

    code = "invalid_json"


class UnsupportedMediaType(ServeError):
    """The headers declare a body in a format that the door does not read."""

    code = "unsupported_media_type"


class UnknownRoute(ServeError):
    """Nothing is served at this path."""

    code = "unknown_route"


class MethodNotAllowed(ServeError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


def from_http(error: HTTPException, method: str, path: str) -> Exception:
    """The error of the router or of the static files as an error of this module.

    Returns `error` itself for any other status than 404 and 405: that is a fault of the server.
    """
    if error.status_code == 404:
        return UnknownRoute(f"nothing is served at {path}; /docs lists the routes")
    if error.status_code == 405:
        return MethodNotAllowed(f"{method} is not allowed at {path}; the Allow header lists the methods")
    return error
