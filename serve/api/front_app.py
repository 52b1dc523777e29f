"""The ASGI app of a front process: predictions through the doors here, every other request through `forward`.

Its layers are those of `app.py`. In place of the router there is `forward`, which answers as the router of the core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.app import DOORS
from serve.api.door import Door, render_by_owner, render_unrouted
from serve.api.fast_path import FastPath
from serve.api.middleware.request_body import BodyLimit
from serve.api.middleware.request_id import RequestId
from serve.api.predictions import Predictions
from serve.core.errors import ServeError
from serve.replica.interface import Replica


class FrontApp:
    """See the head of the file."""

    def __init__(
        self, replica: Replica, forward: ASGIApp, *, doors: Sequence[Callable[[Replica], Door]] = DOORS
    ) -> None:
        self._doors = tuple(door(replica) for door in doors)
        limited = BodyLimit(forward, replica.settings.api.max_body_bytes, self._render)
        self._predictions = Predictions(replica, self._doors, RequestId(limited, self._render))
        self.fast_path = FastPath(replica, self._predictions, self._doors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._predictions(scope, receive, send)

    def render_unrouted(self, error: ServeError, request_id: str) -> Response:
        """The response to an error that the server around the app found, before there was a request for the app."""
        return render_unrouted(self._doors, error, request_id)

    def _render(self, error: BaseException, scope: Scope) -> Response:
        return render_by_owner(self._doors, error, scope)
