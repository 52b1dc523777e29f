"""The nouns that every layer shares. Nothing in here knows a queue, HTTP, torch or Ray.

Shapes: `rows` are query rows, `features` the encoded columns of a context, `outputs` the answer for one row: a
probability per class, or a regressor's statistics in the order of `REGRESSION_STATISTICS`.
"""

from serve.core.engine import DEVICE_PATTERN, Batch, Engine, Finished, FittedContext, Launched, Matrix
from serve.core.model import (
    QUANTILES,
    REGRESSION_STATISTICS,
    Column,
    ColumnKind,
    Context,
    EnsembleOptions,
    ModelDefinition,
    Scalar,
    Task,
)
from serve.core.prediction import Prediction, Timing
from serve.core.request import ModelReference, PredictRequest, Priority
from serve.core.row_buckets import bucket_of, row_buckets
from serve.core.state import ServerState
from serve.core.table import ABSENT, Cells, QueryTable

__all__ = [
    "ABSENT",
    "DEVICE_PATTERN",
    "QUANTILES",
    "REGRESSION_STATISTICS",
    "Batch",
    "Cells",
    "Column",
    "ColumnKind",
    "Context",
    "Engine",
    "EnsembleOptions",
    "Finished",
    "FittedContext",
    "Launched",
    "Matrix",
    "ModelDefinition",
    "ModelReference",
    "PredictRequest",
    "Prediction",
    "Priority",
    "QueryTable",
    "Scalar",
    "ServerState",
    "Task",
    "Timing",
    "bucket_of",
    "row_buckets",
]
