"""A predictor of one model over FakeEngine, and requests for it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from serve.core import (
    Column,
    ColumnKind,
    Context,
    ModelDefinition,
    ModelReference,
    Prediction,
    PredictRequest,
    Priority,
    QueryTable,
    Task,
)
from serve.engine.fake import FakeEngine
from serve.replica.predictor import Predictor
from serve.settings import ApiSettings, BatchingSettings, EngineSettings, ServerSettings
from serve.telemetry.telemetry import Telemetry

RECORD = {"amount": 3.0}


class OneModel:
    """A store of one model."""

    def __init__(self, default_timeout_ms: float | None = None) -> None:
        self.default_timeout_ms = default_timeout_ms

    def names(self) -> list[str]:
        return ["fraud"]

    def load(self, name: str) -> ModelDefinition:
        columns = (Column("amount", ColumnKind.NUMBER),)
        context = Context(Task.CLASSIFICATION, columns, {"amount": [float(i) for i in range(16)]}, ["0", "1"] * 8)
        return ModelDefinition(
            name, "1", context, "/nowhere", "fake-1", "Apache-2.0", default_timeout_ms=self.default_timeout_ms
        )


def make(
    engine: FakeEngine | None = None,
    store: OneModel | None = None,
    batching: dict[str, float] | None = None,
    api: dict[str, float] | None = None,
    **engine_settings: float,
) -> Predictor:
    settings = ServerSettings(
        batching=BatchingSettings.model_validate({"max_batch_rows": 8, **(batching or {})}),
        api=ApiSettings.model_validate(api or {}),
        engine=EngineSettings.model_validate(engine_settings),
    )
    return Predictor(store or OneModel(), engine or FakeEngine(), settings, Telemetry())


def request_of(
    predictor: Predictor,
    table: QueryTable,
    *,
    timeout_s: float | None = None,
    priority: Priority = Priority.INTERACTIVE,
    model: str = "fraud",
) -> PredictRequest:
    """A request as a door makes it: without a timeout it has the default of its model."""
    reference, now = ModelReference(model), time.monotonic()
    deadline = now + (predictor.model(reference).timeout_s if timeout_s is None else timeout_s)
    return PredictRequest(reference, table, now, deadline, priority, "r-1")


async def predict(predictor: Predictor, records: Sequence[Mapping[str, Any]], **options: Any) -> Prediction:
    return await predictor.predict(request_of(predictor, QueryTable.from_records(records), **options))
