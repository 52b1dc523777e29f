"""The nouns that every layer shares. Nothing in here knows a queue, HTTP, torch or Ray.

Shapes: `rows` are query rows, `features` the encoded columns of a context, `outputs` the answer for one row: a
probability per class, or a regressor's statistics in the order of `REGRESSION_STATISTICS`.
"""

from serve.core.engine import DEVICE_PATTERN, Batch, Engine, FittedContext, Matrix
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
from serve.core.request import Priority
from serve.core.state import ServerState

__all__ = [
    "DEVICE_PATTERN",
    "QUANTILES",
    "REGRESSION_STATISTICS",
    "Batch",
    "Column",
    "ColumnKind",
    "Context",
    "Engine",
    "EnsembleOptions",
    "FittedContext",
    "Matrix",
    "ModelDefinition",
    "Prediction",
    "Priority",
    "Scalar",
    "ServerState",
    "Task",
    "Timing",
]
