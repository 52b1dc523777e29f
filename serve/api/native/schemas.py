"""The bodies of the native door: what a request may say, what an answer says. OpenAPI is written from these classes.

Decoding judges the shape only; what a cell may hold is the model's own affair (`FittedContext.encode`). Nothing
here looks at a cell, so a request costs one pass of msgspec and one of the row encoder.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve.core import QUANTILES, REGRESSION_STATISTICS, Prediction
from serve.replica.predictor import ServedModel

assert len(REGRESSION_STATISTICS) == 2 + len(QUANTILES), "mean, median and one column per quantile"

RECORDS_FORM = '{"records": [{"column": value, ...}, ...]}'
TABLE_FORM = '{"columns": ["column", ...], "data": [[value, ...], ...]}'


class Query(msgspec.Struct, forbid_unknown_fields=True):
    """Rows to predict, in one of two forms: `records`, or `columns` with `data`."""

    records: Annotated[
        list[dict[str, Any]] | UnsetType,
        Meta(description="One object per row: column name to value, null where it is missing."),
    ] = UNSET
    columns: Annotated[list[str] | UnsetType, Meta(description="Column names, with `data`.")] = UNSET
    data: Annotated[
        list[list[Any]] | UnsetType,
        Meta(
            description="One list of values per row, in the order of `columns`.",
            extra_json_schema={"items": {"type": "array", "items": {}}},
        ),
    ] = UNSET


class TimingMs(msgspec.Struct):
    """Where the time of this request went, in milliseconds."""

    queue: Annotated[float, Meta(description="Waiting for the device.")]
    compute: Annotated[float, Meta(description="The batch on the device.")]
    total: Annotated[float, Meta(description="From the arrival at the handler to the answer.")]


class ClassPrediction(msgspec.Struct):
    """The answer for one row."""

    label: Annotated[str, Meta(description="The class with the highest probability.")]
    probabilities: Annotated[list[float], Meta(description="One per class, in the order of `classes`.")]


class ValuePrediction(msgspec.Struct):
    """The answer for one row."""

    mean: float
    median: float
    quantiles: Annotated[dict[str, float], Meta(description='By level: "0.05", "0.1", ... "0.95".')]


class _Answer(msgspec.Struct):
    model: str
    version: str


class ClassificationAnswer(_Answer):
    """Predictions of a classifier, one per row, in the order of the request."""

    classes: list[str]
    predictions: list[ClassPrediction]
    request_id: str
    batch_rows: Annotated[int, Meta(description="Rows of the (last) batch it rode in, all callers together.")]
    timing_ms: TimingMs


class RegressionAnswer(_Answer):
    """Predictions of a regressor, one per row, in the order of the request."""

    predictions: list[ValuePrediction]
    request_id: str
    batch_rows: Annotated[int, Meta(description="Rows of the (last) batch it rode in, all callers together.")]
    timing_ms: TimingMs


class Input(msgspec.Struct):
    """One input column."""

    name: str
    kind: Annotated[str, Meta(extra_json_schema={"enum": ["number", "category", "datetime", "text"]})]
    description: str


class ModelSummary(msgspec.Struct):
    """One line of the list of models."""

    name: str
    version: str
    task: Annotated[str, Meta(extra_json_schema={"enum": ["classification", "regression"]})]
    description: str


class ModelList(msgspec.Struct):
    """Every model that is served."""

    models: list[ModelSummary]


class ModelDescription(ModelSummary, omit_defaults=True):
    """All that a caller needs to know of one model."""

    classes: Annotated[list[str], Meta(description="In the order of `probabilities`; empty for a regressor.")]
    inputs: list[Input]
    checkpoint: str
    licence: str
    num_context_rows: Annotated[int, Meta(description="Labelled rows that the model conditions on.")]
    num_members: Annotated[int, Meta(description="Ensemble members whose answers are averaged.")]
    max_rows: Annotated[int, Meta(description="Most rows in one request.")]
    default_timeout_ms: Annotated[float, Meta(description="The deadline where `x-request-timeout-ms` names none.")]
    device: str
    backend: Annotated[str, Meta(description="Whose forward pass answers: `ours`, or tabpfn's own, `library`.")]
    example: Annotated[dict[str, Any] | UnsetType, Meta(description="One record, ready to be posted.")] = UNSET


COMPONENTS = (Query, ClassificationAnswer, RegressionAnswer, ModelList, ModelDescription)
"""What OpenAPI shows."""


def summarise(model: ServedModel) -> ModelSummary:
    definition = model.definition
    return ModelSummary(definition.name, definition.version, definition.context.task.value, definition.description)


def describe_model(model: ServedModel, *, max_rows: int, device: str) -> ModelDescription:
    definition, fitted = model.definition, model.fitted
    return ModelDescription(
        name=definition.name,
        version=definition.version,
        task=definition.context.task.value,
        description=definition.description,
        classes=list(fitted.classes),
        inputs=[Input(column.name, column.kind.value, column.description) for column in fitted.columns],
        checkpoint=definition.checkpoint_name,
        licence=definition.licence,
        num_context_rows=definition.context.num_rows,
        num_members=definition.options.num_members,
        max_rows=max_rows,
        default_timeout_ms=round(1e3 * model.timeout_s, 3),
        device=device,
        backend=fitted.backend,
        example=UNSET if definition.example is None else dict(definition.example),
    )


def encode_answer(model: ServedModel, prediction: Prediction, request_id: str, total_ms: float) -> bytes:
    """The JSON of one answer. Numbers keep every digit that float64 has; times are rounded to the microsecond."""
    timing = TimingMs(round(prediction.timing.queue_ms, 3), round(prediction.timing.compute_ms, 3), round(total_ms, 3))
    name, version, classes = model.definition.name, model.definition.version, model.fitted.classes
    outputs = prediction.outputs
    if not classes:
        values = [_value_prediction(row) for row in outputs.tolist()]
        return msgspec.json.encode(RegressionAnswer(name, version, values, request_id, prediction.batch_rows, timing))
    labels = [classes[index] for index in outputs.argmax(axis=1).tolist()]
    predictions = list(map(ClassPrediction, labels, outputs.tolist()))
    return msgspec.json.encode(
        ClassificationAnswer(name, version, list(classes), predictions, request_id, prediction.batch_rows, timing)
    )


_QUANTILE_NAMES = tuple(f"{quantile:g}" for quantile in QUANTILES)


def _value_prediction(row: list[float]) -> ValuePrediction:
    return ValuePrediction(row[0], row[1], dict(zip(_QUANTILE_NAMES, row[2:], strict=True)))
