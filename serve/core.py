"""The nouns that every layer shares. Imports nothing of ours but `errors`; knows no queue, no HTTP, no torch.

Shapes: `rows` are query rows, `features` the encoded columns of the context's schema, `outputs` what the task answers
per row (a probability per class, or the regressor's statistics in the order of `REGRESSION_STATISTICS`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
REGRESSION_STATISTICS = ("mean", "median", *(f"q{round(100 * quantile):02d}" for quantile in QUANTILES))

Scalar = str | int | float | bool | None


class Task(enum.StrEnum):
    """What a model answers per row."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class ColumnKind(enum.StrEnum):
    """How a column's cells are read; see `engine/row_encoder.py` for the exact meaning of each."""

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
        class_priors: true share of each class where the context was sampled by class; None leaves the answers alone.
        num_hidden_rows: rows that only a fitted estimator has seen; `cells` and `target` are empty then.
    """

    task: Task
    columns: tuple[Column, ...]
    cells: Mapping[str, Sequence[Scalar]]
    target: Sequence[str] | Sequence[float]
    class_priors: Mapping[str, float] | None = None
    num_hidden_rows: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.target) + self.num_hidden_rows


@dataclass(frozen=True, slots=True)
class EnsembleOptions:
    """What a model asks of the library beside its context; see `tabpfn.TabPFNClassifier` for their meaning."""

    num_members: int = 8
    random_state: int = 0
    softmax_temperature: float | None = None
    """None takes the checkpoint's own."""


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """One version of one model, as the store hands it to the engine. `checkpoint_path` is absolute and verified."""

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
    """The deadline of a request that names none; None leaves it to `BatchingSettings`."""
    estimator_path: str | None = None
    """A fitted estimator (`engine/estimator_file.py`), verified, in the place of a context that has no rows here."""


class FittedContext(Protocol):
    """A context with everything that the engine built from it. Opaque to all but the engine; the batch key."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class labels in the order of the outputs; empty for a regressor."""

    @property
    def num_outputs(self) -> int:
        """Width of an answer."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Input columns in order."""

    @property
    def implementation(self) -> str:
        """Whose forward pass answers: "ours", or "library"."""

    def encode_context(self) -> Matrix:
        """The context's own rows, encoded: float64 [rows, features]."""

    def encode_records(self, records: Sequence[Mapping[str, Any]]) -> Matrix:
        """Records of one request -> float64 [rows, features]. Raises InvalidInput naming row and column."""

    def encode_table(self, columns: Sequence[str], data: Sequence[Sequence[Any]]) -> Matrix:
        """The same from column names and rows of cells."""


class Priority(enum.StrEnum):
    """Who goes first: a caller who waits for the answer, or one who sends rows by the thousand."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one fitted context, joined from several requests; float64 [rows, features]."""

    context: FittedContext
    rows: Matrix


class Engine(Protocol):
    """Runs models on one device. Only ever called from one thread at a time (the device thread)."""

    @property
    def device(self) -> str:
        """The device's explicit name: `cpu` or `cuda:N`."""

    @property
    def lost(self) -> bool:
        """It is gone with all that it held, and answers nothing more. May be asked from any thread."""

    def fit(self, model: ModelDefinition) -> FittedContext:
        """Build the fitted context; seconds to minutes. Raises InvalidModel."""

    def predict(self, batch: Batch) -> Matrix:
        """Answer every row: float64 [rows, outputs], row i of the answer for row i of the batch.

        Raises:
            OutOfMemory: the device had no memory for so many rows; fewer may fit.
        """

    def reference(self, batch: Batch) -> Matrix:
        """The same answers by the slow, plain road, without a KV cache: what `predict` must equal."""

    def close(self) -> None:
        """Give the device back."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where one request's time went, in milliseconds. `total` is set by whoever saw the request arrive.

    A request in several batches waited until the first of them and was computed in all: `compute` is their sum.
    """

    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One request's answer.

    Attributes:
        outputs: float64 [rows, outputs] for the request's own rows, in its order.
        batch_rows: rows of the batch it rode in, all callers together; of the last one where it was split.
    """

    outputs: Matrix
    batch_rows: int
    timing: Timing


class ServerState(enum.StrEnum):
    """A replica's life, in order; it never goes back."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


DevicePattern = r"^(cpu|cuda:\d+)$"
