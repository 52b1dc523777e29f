"""FakeEngine: the Engine protocol with a cost model in place of a device, for tests and for measuring other parts.

An answer is a fixed function of the row's own values. Rows that differ in a cell have different answers, so an answer
that reaches the wrong caller shows at once. FakeEngine enforces the protocol: a call fails while another thread is in
one, and after `close`. Batches are collected in order, and no more are in flight than it allows.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from serve.core import (
    REGRESSION_STATISTICS,
    Batch,
    Column,
    ColumnKind,
    Launched,
    Matrix,
    ModelDefinition,
    QueryTable,
    Scalar,
    Task,
)
from serve.core.errors import InvalidModel
from serve.engine.coding import Coding
from serve.engine.row_encoder import RowEncoder

# Irrational steps, so that no two columns, classes or neighbouring integers get the same weight.
_COLUMN_STEP = math.sqrt(2) - 1
_CLASS_STEP = math.sqrt(3) - 1


@dataclass(frozen=True, eq=False)
class FakeContext:
    """A fitted context of number columns; a regressor's where it has no classes."""

    columns: tuple[Column, ...] = tuple(Column(name, ColumnKind.NUMBER) for name in ("a", "b", "c"))
    classes: tuple[str, ...] = ("0", "1")
    rows: Matrix = field(default_factory=lambda: np.arange(48, dtype=np.float64).reshape(16, 3))
    backend: str = "compiled"

    @property
    def num_outputs(self) -> int:
        return len(self.classes) or len(REGRESSION_STATISTICS)

    def encode_context(self) -> Matrix:
        return self.rows

    def encode(self, table: QueryTable) -> Matrix:
        return self.encoder.encode(table)

    @property
    def canary_slack(self) -> None:
        """Answers to one row never differ here."""

    @cached_property
    def encoder(self) -> RowEncoder:
        """Passes numbers through."""
        return RowEncoder(self.columns, [Coding()] * len(self.columns))


class FakeEngine:
    """An engine that answers by `fake_answer`.

    Args:
        cost_s: seconds for which a batch of a number of rows occupies the device; None costs nothing.
        gate: called with each batch before its answer, on the thread that computes; it may block, raise or record.
        max_in_flight: with 1, `launch` computes the answer, as on a CPU. With more, `collect` does, as on a GPU.
    """

    device = "cpu"
    lost = False
    answer_fd: int | None = None

    def __init__(
        self,
        cost_s: Callable[[int], float] | None = None,
        gate: Callable[[Batch], None] | None = None,
        max_in_flight: int = 1,
    ) -> None:
        self.max_in_flight = max_in_flight
        self._cost_s = cost_s
        self._gate = gate
        self._in_use = threading.Lock()
        self._in_flight: deque[_FakeLaunched] = deque()
        self._closed = False

    def fit(self, model: ModelDefinition) -> FakeContext:
        with self._exclusive():
            self._check_nothing_in_flight()
            context = model.context
            for column in context.columns:
                if column.kind is not ColumnKind.NUMBER:
                    raise InvalidModel(f"FakeEngine reads number columns only; {column.name!r} is {column.kind}")
            cells = [[context.cells[column.name][i] for column in context.columns] for i in range(context.num_rows)]
            classified = context.task is Task.CLASSIFICATION
            classes = tuple(sorted({str(label) for label in context.target})) if classified else ()
            return FakeContext(context.columns, classes, _matrix(context.columns, cells))

    def launch(self, batch: Batch) -> Launched:
        with self._exclusive():
            assert len(self._in_flight) < self.max_in_flight, f"more than {self.max_in_flight} batches are in flight"
            outputs = self._compute(batch) if self.max_in_flight == 1 else None
            launched = _FakeLaunched(self, batch, outputs)
            self._in_flight.append(launched)
            return launched

    def predict(self, batch: Batch) -> Matrix:
        return self.launch(batch).collect()

    def reference(self, batch: Batch) -> Matrix:
        with self._exclusive():
            self._check_nothing_in_flight()
            alone = [fake_answer(Batch(batch.context, batch.rows[i : i + 1])) for i in range(len(batch.rows))]
            return np.concatenate(alone)

    def close(self) -> None:
        with self._exclusive():
            self._closed = True

    def _collect(self, launched: _FakeLaunched) -> Matrix:
        assert launched in self._in_flight, "a batch is collected once"
        assert launched is self._in_flight[0], "batches are collected in the order of their launches"
        try:
            return self._compute(launched.batch) if launched.outputs is None else launched.outputs
        finally:
            self._in_flight.popleft()

    def _compute(self, batch: Batch) -> Matrix:
        if self._gate is not None:
            self._gate(batch)
        if self._cost_s is not None:
            time.sleep(self._cost_s(len(batch.rows)))
        return fake_answer(batch)

    def _check_nothing_in_flight(self) -> None:
        assert not self._in_flight, "a batch is in flight"

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        assert self._in_use.acquire(blocking=False), "an engine is called from one thread at a time"
        try:
            assert not self._closed, "the engine was closed"
            yield
        finally:
            self._in_use.release()


@dataclass(frozen=True, eq=False, slots=True)
class _FakeLaunched:
    engine: FakeEngine
    batch: Batch
    outputs: Matrix | None

    def collect(self) -> Matrix:
        return self.engine._collect(self)


def fake_answer(batch: Batch) -> Matrix:
    """FakeEngine's answer to a batch: float64 [rows, outputs].

    A classifier's probabilities sum to 1, and a regressor's quantiles ascend.
    """
    # Bounded, so nothing overflows; element by element, so other rows cannot change a row's rounding.
    waves = np.sin(np.nan_to_num(batch.rows, nan=0.5) * 0.9)
    num_classes = len(batch.context.classes)
    if not num_classes:
        return np.stack([_mix(waves, 0.0) + _offset(name) for name in REGRESSION_STATISTICS], axis=1)
    weights: Matrix = np.exp(np.stack([_mix(waves, k * _CLASS_STEP) for k in range(num_classes)], axis=1))
    probabilities: Matrix = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def _mix(waves: Matrix, phase: float) -> Matrix:
    mixed = np.zeros(len(waves))
    for j in range(waves.shape[1]):
        mixed += waves[:, j] * math.sin(1 + phase + j * _COLUMN_STEP)
    return mixed


def _offset(statistic: str) -> float:
    """Distance from the score: 0 for mean and median; for a quantile its distance from the median."""
    return 0.0 if statistic in ("mean", "median") else int(statistic.removeprefix("q")) / 100 - 0.5


def _matrix(columns: Sequence[Column], cells: Sequence[Sequence[Scalar]]) -> Matrix:
    # numpy cannot infer the shape of no rows; float64 turns None into NaN
    return np.array(cells, dtype=np.float64).reshape(len(cells), len(columns))
