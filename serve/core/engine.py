"""The engine as every other part sees it: fitted contexts, batches, and the `Engine` protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve.core.model import Column, ModelDefinition
from serve.core.table import QueryTable

Matrix = NDArray[np.float64]

DEVICE_PATTERN = r"^(cpu|cuda:\d+)$"
"""What names a device: `cpu`, or one GPU by its number."""


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
    def backend(self) -> str:
        """What computes the answers: "compiled" or "tabpfn"."""

    def encode_context(self) -> Matrix:
        """The context's own rows, encoded: float64 [rows, features]."""

    def encode(self, table: QueryTable) -> Matrix:
        """The rows of one request as float64 [rows, features]. Raises InvalidInput naming row and column."""


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
