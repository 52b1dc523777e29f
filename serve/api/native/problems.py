"""The errors of the native door: `application/problem+json` by RFC 9457.

`type` stays `about:blank`, so by the RFC `title` is the phrase of the status. `code` and `detail` say the rest.
"""

from __future__ import annotations

import http

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from serve.api.statuses import public_error

MEDIA_TYPE = "application/problem+json"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong with one request."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    row: int | UnsetType = UNSET
    column: str | UnsetType = UNSET


def respond(error: BaseException, request_id: str) -> Response:
    """The response to an error, with `Retry-After` where another try can help."""
    public = public_error(error)
    status = public.status.http
    problem = Problem(
        type="about:blank",
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=public.detail,
        code=public.code,
        request_id=request_id,
        row=UNSET if public.row is None else public.row,
        column=UNSET if public.column is None else public.column,
    )
    headers = {} if public.retry_after_s is None else {"retry-after": str(public.retry_after_s)}
    return Response(msgspec.json.encode(problem), status, headers, MEDIA_TYPE)
