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
    """A context with everything that the engine built from it. It is the batch key; only the engine looks inside."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class labels in the order of the outputs; empty for a regressor."""

    @property
    def num_outputs(self) -> int:
        """Outputs for one row."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Input columns in order."""

    @property
    def backend(self) -> str:
        """What computes the answers: "compiled", or "tabpfn" by setting or where no compiled forward pass exists.

        "compiled, not recorded" where a GPU runs some batches without a CUDA graph. It may become that at a first run.
        """

    @property
    def canary_slack(self) -> Matrix | None:
        """How far the answers to the canary rows may differ between two ways of computing them, beside the tolerance.

        float64 [canaries, outputs], in the unit of the outputs; None for nowhere.
        """

    def encode_context(self) -> Matrix:
        """The context's own rows, encoded: float64 [rows, features]."""

    def encode(self, table: QueryTable) -> Matrix:
        """The rows of one request as float64 [rows, features]. Raises InvalidInput naming row and column."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one fitted context, joined from several requests; float64 [rows, features]."""

    context: FittedContext
    rows: Matrix


class Launched(Protocol):
    """A batch that the device computes, or has computed.

    An engine in another process may add two float attributes, which are read after `collect`. `prepared_s`: the seconds
    from the call of `launch` until the device could begin. `ended_at`: when the answer was there, in seconds of
    `time.monotonic`.
    """

    def collect(self) -> Matrix:
        """Wait for the outputs; raises what `Engine.predict` raises. Called once, in the order of the launches."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A launched batch whose outputs were there at once, as on a CPU."""

    outputs: Matrix

    def collect(self) -> Matrix:
        return self.outputs


class Engine(Protocol):
    """Runs models on one device. Only the device thread calls it, one call at a time; for `answer_fd` see there.

    `Launched.collect` alone may be called from a second thread. `fit` and `reference` are called when no batch is in
    flight.
    """

    @property
    def device(self) -> str:
        """The device's explicit name: `cpu` or `cuda:N`."""

    @property
    def lost(self) -> bool:
        """The engine is gone with its fitted contexts, for good. Any thread may ask."""

    def fit(self, model: ModelDefinition) -> FittedContext:
        """Build the fitted context; seconds to minutes. Raises InvalidModel."""

    @property
    def max_in_flight(self) -> int:
        """Batches that may be launched and not collected: 2 where the device computes beside the host, otherwise 1."""

    @property
    def answer_fd(self) -> int | None:
        """A file descriptor that is readable while the answer to a launched batch waits to be collected.

        `launch` and `collect` then take microseconds, and are called on the event loop, never beside a call of the
        device thread. None: they may take as long as the batch, and are called on threads.
        """

    def launch(self, batch: Batch) -> Launched:
        """Prepare a batch on the host and hand it to the device, without a wait for the device where it is a GPU.

        Raises what `predict` raises; a fault of the device may also be raised by `Launched.collect`.
        """

    def predict(self, batch: Batch) -> Matrix:
        """Launch and collect: float64 [rows, outputs], row i of the answer for row i of the batch.

        Raises:
            OutOfMemory: the device had no memory for so many rows; fewer may fit.
        """

    def reference(self, batch: Batch) -> Matrix:
        """The same outputs from tabpfn without a KV cache: slow, and what `predict` must equal."""

    def close(self) -> None:
        """Free the device."""
