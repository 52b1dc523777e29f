"""The flow of every request for predictions, whichever door it is for.

Theory of operation
-------------------
`Predictions` is the outermost ASGI layer. A request that no door matches goes on to the router. The others are served
here as bare ASGI, because the layers of a framework cost a fifth of what a prediction costs on the event loop
(docs/decisions/001-cost-of-the-front.md), and a prediction needs none of them.

1. Request id, declared length of the body, model, deadline and priority: all from the headers. The deadline is the
   arrival plus the caller's timeout, or plus the model's default timeout.
2. The door checks the headers; then the body is received, within the limit.
3. The door reads the body. A body above `SMALL_BYTES` is read on another thread, and its answer is written there.
4. The replica answers, while the connection is watched: a caller that disconnects cancels its own request.
5. The door writes the prediction, or renders the error.

What is always true:
- each request is counted once, by `report_outcome`, also one that an early refusal ends;
- an unexpected exception is logged once, with the request id, and rendered as `internal_error`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.door import Door, RawHeaders, RequestHead
from serve.api.middleware.request_body import LimitedBody, run_while_connected
from serve.api.request_headers import add_request_id, new_request_id, read_deadline_and_priority, read_request_id
from serve.api.statuses import CALLER_ERRORS, INTERNAL_ERROR
from serve.core import ModelReference
from serve.replica.interface import Replica, report_outcome
from serve.replica.large_requests import SMALL_BYTES

_log = logging.getLogger(__name__)

_CLIENT_CLOSED_REQUEST = 499


class Predictions:
    """ASGI app; see the head of the file.

    Args:
        doors: the first one that matches a request serves it.
        otherwise: serves the requests that no door matches.
        answers_request_id: the answer's `x-request-id` is added here; the server around the app does it otherwise.
    """

    def __init__(
        self, replica: Replica, doors: Sequence[Door], otherwise: ASGIApp, *, answers_request_id: bool = True
    ) -> None:
        self._replica = replica
        self._doors = tuple(doors)
        self._otherwise = otherwise
        self.answers_request_id = answers_request_id
        self._max_body_bytes = replica.settings.api.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        matched = self.match(scope["method"], scope["path"], scope["headers"]) if scope["type"] == "http" else None
        if matched is None:
            await self._otherwise(scope, receive, send)
        else:
            await self._serve(*matched, scope, receive, send)

    def match(self, method: str, path: str, headers: RawHeaders) -> tuple[Door, ModelReference] | None:
        """The door and the model of a request for predictions; None for every other request."""
        for door in self._doors:
            reference = door.match(method, path, headers)
            if reference is not None:
                return door, reference
        return None

    async def _serve(self, door: Door, reference: ModelReference, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_at = time.monotonic()
        headers, body = Headers(scope=scope), LimitedBody(receive, self._max_body_bytes)
        request_id, outcome = "", INTERNAL_ERROR
        try:
            request_id = read_request_id(headers.raw)
            body.check_declared(headers)
            head = self.head(reference, headers, arrived_at, request_id)
            door.check_headers(headers)
            response = await self._predict(door, head, await body.read(), receive)
            outcome = "ok"
        except CALLER_ERRORS as error:
            outcome = error.code
            request_id = request_id or new_request_id()
            response = door.render(error, request_id)
        except ClientDisconnect:
            outcome = "client_disconnected"
            response = Response(status_code=_CLIENT_CLOSED_REQUEST)  # nobody reads it
        except asyncio.CancelledError:  # the server closed the connection
            outcome = "cancelled"
            raise
        except Exception as error:
            _log.exception("request %s failed", request_id)
            response = door.render(error, request_id)
        finally:
            report_outcome(self._replica, reference, outcome, [time.monotonic() - arrived_at])
        if self.answers_request_id:
            add_request_id(response, request_id)
        if body.refusal is None:
            await response(scope, receive, send)
        else:
            await body.refuse(response, scope, send)

    def head(self, reference: ModelReference, headers: Headers, arrived_at: float, request_id: str) -> RequestHead:
        """What the headers say. Raises NotReady, UnknownModel and InvalidInput."""
        model = self._replica.model(reference)
        timeout_s, priority = read_deadline_and_priority(headers.raw)
        deadline = model.deadline(arrived_at, timeout_s)
        return RequestHead(model, reference, headers.raw, arrived_at, deadline, priority, request_id)

    async def _predict(self, door: Door, head: RequestHead, body: bytes, receive: Receive) -> Response:
        is_large = len(body) > SMALL_BYTES
        on_thread = self._replica.large_requests.run
        request = await on_thread(door.read, head, body) if is_large else door.read(head, body)
        prediction = await run_while_connected(self._replica.predict(request), receive)
        total_ms = 1e3 * (time.monotonic() - head.arrived_at)
        if is_large:
            return await on_thread(door.write, head.model, request, prediction, total_ms)
        return door.write(head.model, request, prediction, total_ms)
