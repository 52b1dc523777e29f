"""A replica as the doors see it: a `Predictor`, or in a front process what stands for it (`edges/fronts/`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve.batching import Outcome
from serve.core import FittedContext, ModelDefinition, ModelReference, Prediction, PredictRequest, Priority
from serve.core.errors import NotReady, ServeError, TooLarge, UnknownModel
from serve.replica.large_requests import LargeRequestExecutor
from serve.settings import ServerSettings
from serve.telemetry.recorder import Recorder

UNKNOWN_MODEL_LABEL = "unknown"
"""The metrics' `model` of a request for a model that is not served."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is ready to answer.

    Attributes:
        timeout_s: time from arrival to deadline of a request that states no timeout.
    """

    definition: ModelDefinition
    fitted: FittedContext
    timeout_s: float

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.definition.name

    def deadline(self, arrived_at: float, timeout_s: float | None) -> float:
        """When the caller of a request gives up; `timeout_s` is None where the caller states no timeout."""
        return arrived_at + (self.timeout_s if timeout_s is None else timeout_s)


class Replica(Protocol):
    """What doors, and the flow of requests through them, use of a replica. Lives on one event loop."""

    @property
    def settings(self) -> ServerSettings:
        """The replica's settings."""

    @property
    def recorder(self) -> Recorder:
        """Receives the outcome of each request."""

    @property
    def large_requests(self) -> LargeRequestExecutor:
        """Reads the large requests."""

    @property
    def device(self) -> str:
        """The device of the models: `cpu` or `cuda:N`."""

    def models(self) -> list[ServedModel]:
        """Every served model, by name. Raises NotReady."""

    def model(self, reference: ModelReference) -> ServedModel:
        """The served model that a request names. Raises NotReady, UnknownModel."""

    def precheck(self, model: ServedModel, deadline: float, priority: Priority) -> None:
        """Return if a request of one row would be admitted now. Raises Draining, Overloaded, DeadlineTooShort."""

    async def predict(self, request: PredictRequest) -> Prediction:
        """Answer the rows of one request, in their order. `Predictor.predict` lists the errors."""

    def admit(self, request: PredictRequest, on_outcome: Callable[[Outcome], None], *, is_checked: bool = False) -> Any:
        """As `predict`, for at most `SMALL_ROWS` rows, with a callback; returns what `withdraw` takes.

        Args:
            on_outcome: called once, later, on the event loop, unless the request is withdrawn before.
            is_checked: the request has one row, and `precheck` has passed it in this very call of the event loop.
        """

    def withdraw(self, admitted: Any) -> None:
        """The caller of `admit` has left. Nothing where the request has its outcome."""


def report_outcome(replica: Replica, reference: ModelReference, outcome: str, seconds: Sequence[float]) -> None:
    """Report requests for predictions with one outcome; for each, the seconds since its arrival.

    Nothing else in the server reports outcomes. A model that is not served has one label, so that callers cannot add
    series.
    """
    try:
        label = replica.model(reference).name
    except ServeError:
        label = UNKNOWN_MODEL_LABEL
    replica.recorder.answered(label, outcome, seconds)


def check_num_rows(num_rows: int, settings: ServerSettings) -> None:
    """Raise TooLarge for a request with more rows than the settings allow."""
    max_rows = settings.batching.max_request_rows
    if num_rows > max_rows:
        raise TooLarge(f"{num_rows} rows in one request; at most {max_rows} are taken, send them in parts")


class ModelTable:
    """The served models by name."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        self.is_complete = False
        """Every model of the store is there."""

    def add(self, model: ServedModel) -> None:
        """One more model is ready to answer."""
        self._models[model.name] = model

    def ready(self) -> list[ServedModel]:
        """The models so far, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def all(self) -> list[ServedModel]:
        """Every served model, by name. Raises NotReady before the table is complete."""
        self._require_complete()
        return self.ready()

    def find(self, reference: ModelReference) -> ServedModel:
        """The served model that a request names. Raises NotReady before the table is complete, UnknownModel."""
        self._require_complete()
        served = self._models.get(reference.name)
        if served is None:
            raise UnknownModel(f"no model named {reference.name!r}; GET /v1/models lists the served models")
        if reference.version not in (None, served.definition.version):
            raise UnknownModel(
                f"model {reference.name!r} is served here in version {served.definition.version!r}, "
                f"not {reference.version[:100]!r}"
            )
        return served

    def _require_complete(self) -> None:
        if not self.is_complete:
            raise NotReady("models are being loaded and warmed up")
