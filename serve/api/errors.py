"""The errors of HTTP requests that no model takes part in. `core/errors.py` has the others."""

from __future__ import annotations

from starlette.exceptions import HTTPException

from serve.core.errors import ServeError


class InvalidHeader(ServeError):
    """The value of a request header is not valid."""

    code = "invalid_header"


class InvalidRequest(ServeError):
    """What arrived is not a request of HTTP/1.1, or none that can be served."""

    code = "invalid_request"


class HeadersTooLarge(ServeError):
    """Request line and headers have more bytes or headers than allowed."""

    code = "headers_too_large"


class RequestTimeout(ServeError):
    """The request did not arrive in time."""

    code = "request_timeout"


class TooManyConnections(ServeError):
    """The server has as many open connections as it takes."""

    code = "too_many_connections"


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
