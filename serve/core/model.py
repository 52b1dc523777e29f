"""What a model is: its columns, its context, and the options it was published with."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
REGRESSION_STATISTICS = ("mean", "median", *(f"q{round(100 * quantile):02d}" for quantile in QUANTILES))

Scalar = str | int | float | bool | None


class Task(enum.StrEnum):
    """The kind of a model's answers."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class ColumnKind(enum.StrEnum):
    """How the cells of a column are read; `engine/row_encoder.py` defines each kind."""

    NUMBER = "number"
    CATEGORY = "category"
    DATETIME = "datetime"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Column:
    """One input column of a model, as its caller sees it."""

    name: str
    kind: ColumnKind
    description: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """The labelled rows that TabPFN conditions on.

    Attributes:
        columns: input columns in order.
        cells: one sequence per column, each `num_rows` long; None for missing.
        target: `num_rows` labels (classification: strings) or numbers (regression).
        class_priors: true share of each class where the context was sampled by class; None changes no answer.
        num_hidden_rows: rows that only a fitted estimator has seen; `cells` and `target` are empty then.
    """

    task: Task
    columns: tuple[Column, ...]
    cells: Mapping[str, Sequence[Scalar]]
    target: Sequence[str | float]
    class_priors: Mapping[str, float] | None = None
    num_hidden_rows: int = 0

    @property
    def num_rows(self) -> int:
        """Labelled rows."""
        return len(self.target) + self.num_hidden_rows


@dataclass(frozen=True, slots=True)
class EnsembleOptions:
    """Options of a model for tabpfn beside its context; `tabpfn.TabPFNClassifier` explains them."""

    num_members: int = 8
    random_state: int = 0
    softmax_temperature: float | None = None
    """None takes the temperature of the checkpoint."""


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """One version of one model, as the engine gets it from the store. `checkpoint_path` is absolute and verified."""

    name: str
    version: str
    context: Context
    checkpoint_path: str
    checkpoint_name: str
    licence: str
    options: EnsembleOptions = field(default_factory=EnsembleOptions)
    example: Mapping[str, Scalar] | None = None
    description: str = ""
    default_timeout_ms: float | None = None
    """Time from arrival to deadline of a request that states no timeout; None: `BatchingSettings` says."""
    estimator_path: str | None = None
    """A fitted estimator (`engine/estimators/file.py`), verified. It stands in for a context whose rows are gone."""
