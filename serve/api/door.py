"""The contract of a door: one protocol's way to ask for predictions.

A door translates and decides nothing. `Predictions` calls its methods in this order, and does all the rest:

1. `match`: does this request ask this door for predictions, and of which model?
2. `check_headers`: can a body with these headers be read at all?
3. `read`: headers and body become a `PredictRequest`.
4. `write`: a prediction becomes the response; or `render`: an error becomes the response.

What is always true:
- a door is asked by method, path and headers alone, also for an early refusal, when no body has come yet;
- `read` and `write` of a large request run on another thread, so they use nothing that belongs to the event loop;
- a door counts nothing, logs nothing, and knows no queue.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from serve.api.request_headers import REQUEST_ID_HEADER
from serve.api.routes import RouteGroup
from serve.core import ModelReference, Prediction, PredictRequest, Priority
from serve.replica.interface import ServedModel

RawHeaders = list[tuple[bytes, bytes]]
"""Request headers as ASGI has them: lower-case names and values, in their order."""


@dataclass(slots=True)
class RequestHead:
    """What is known of a request for predictions before its body is read.

    Attributes:
        model: the served model that `reference` names.
        arrived_at: when the server had the headers, in seconds of `time.monotonic`.
        deadline: when the caller gives up, on the same clock.
        request_id: the caller's own, or a new one.
    """

    model: ServedModel
    reference: ModelReference
    headers: RawHeaders
    arrived_at: float
    deadline: float
    priority: Priority
    request_id: str


class Door(RouteGroup):
    """One protocol. `routes` has what the protocol serves beside predictions, and a `prediction_route` for those."""

    prefixes: ClassVar[tuple[str, ...]]
    """The starts of the paths whose errors this door renders, also those of the router and of the body limit."""

    decisive_headers: ClassVar[frozenset[bytes]]
    """Every header that `match` and `check_headers` read, in lower case. Equal ones are decided once (`fast_path`)."""

    @abstractmethod
    def match(self, method: str, path: str, headers: RawHeaders) -> ModelReference | None:
        """The model of a request for predictions at this door; None for every other request. Must be quick."""

    def check_headers(self, headers: Headers) -> None:
        """Raise UnsupportedMediaType for a body that `read` cannot read. It is refused before it is received."""

    @abstractmethod
    def read(self, head: RequestHead, body: bytes) -> PredictRequest:
        """The request, with the table that `body` holds. Raises InvalidInput, InvalidJson or UnsupportedMediaType."""

    @abstractmethod
    def write(self, model: ServedModel, request: PredictRequest, prediction: Prediction, total_ms: float) -> Response:
        """The response to an answered request. `total_ms` is the time since its arrival."""

    @abstractmethod
    def render(self, error: BaseException, request_id: str) -> Response:
        """The response to a request that failed. `statuses.public_error` says what may be in it."""


def render_by_owner(doors: Sequence[Door], error: BaseException, scope: Scope) -> Response:
    """The response to an error outside the flow of predictions, by the door that owns the path, or by the first."""
    owners = (door for door in doors if scope["path"].startswith(door.prefixes))
    return next(owners, doors[0]).render(error, scope["state"]["request_id"])


def render_unrouted(doors: Sequence[Door], error: BaseException, request_id: str) -> Response:
    """The response to an error that no route has seen, by the first door."""
    response = doors[0].render(error, request_id)
    response.headers[REQUEST_ID_HEADER] = request_id
    return response
