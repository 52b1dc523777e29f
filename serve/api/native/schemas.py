"""The JSON bodies of the native door, as classes. `json_body.py` reads and writes them, OpenAPI is made from them.

Decoding checks the shape only. The row encoder of the model checks the cells (`FittedContext.encode`), so a request
costs one pass of msgspec and one pass of the row encoder.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve.replica.interface import ServedModel

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
    total: Annotated[float, Meta(description="From the arrival of the headers to the answer.")]


class ClassPrediction(msgspec.Struct):
    """The answer of a classifier for one row."""

    label: Annotated[str, Meta(description="The class with the highest probability.")]
    probabilities: Annotated[list[float], Meta(description="One per class, in the order of `classes`.")]


class ValuePrediction(msgspec.Struct):
    """The answer of a regressor for one row."""

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
    batch_rows: Annotated[
        int, Meta(description="Rows of the batch with this request's last row, all callers together.")
    ]
    timing_ms: TimingMs


class RegressionAnswer(_Answer):
    """Predictions of a regressor, one per row, in the order of the request."""

    predictions: list[ValuePrediction]
    request_id: str
    batch_rows: Annotated[
        int, Meta(description="Rows of the batch with this request's last row, all callers together.")
    ]
    timing_ms: TimingMs


class Input(msgspec.Struct):
    """One input column."""

    name: str
    kind: Annotated[str, Meta(extra_json_schema={"enum": ["number", "category", "datetime", "text"]})]
    description: str


class ModelSummary(msgspec.Struct):
    """One entry in the list of models."""

    name: str
    version: str
    task: Annotated[str, Meta(extra_json_schema={"enum": ["classification", "regression"]})]
    description: str


class ModelList(msgspec.Struct):
    """Every served model."""

    models: list[ModelSummary]


class ModelDescription(ModelSummary, omit_defaults=True):
    """Everything that a caller needs to know about one model."""

    classes: Annotated[list[str], Meta(description="In the order of `probabilities`; empty for a regressor.")]
    inputs: list[Input]
    checkpoint: str
    licence: str
    num_context_rows: Annotated[int, Meta(description="Labelled rows that the model conditions on.")]
    num_members: Annotated[int, Meta(description="Ensemble members whose answers are averaged.")]
    max_rows: Annotated[int, Meta(description="Most rows in one request.")]
    default_timeout_ms: Annotated[
        float, Meta(description="Time to the deadline of a request without `x-request-timeout-ms`.")
    ]
    device: str
    backend: Annotated[
        str,
        Meta(
            description="The forward pass: `compiled` by the server, `compiled, not recorded` where a GPU runs some "
            "batches without a CUDA graph, or that of `tabpfn`."
        ),
    ]
    example: Annotated[dict[str, Any] | UnsetType, Meta(description="One record, ready to be posted.")] = UNSET


COMPONENTS = (Query, ClassificationAnswer, RegressionAnswer, ModelList, ModelDescription)
"""The classes whose schemas are in the OpenAPI document."""


def summarise(model: ServedModel) -> ModelSummary:
    """The entry of one served model."""
    definition = model.definition
    return ModelSummary(definition.name, definition.version, definition.context.task.value, definition.description)


def describe_model(model: ServedModel, *, max_rows: int, device: str) -> ModelDescription:
    """The whole description of one served model."""
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
