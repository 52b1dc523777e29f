"""FakeEngine: the Engine protocol with a cost model in the place of a device. For tests and for measuring the rest.

An answer is a fixed function of the row's own values, different for every row that differs in a cell, so a batch whose
rows and callers are mispaired shows at once. It keeps the protocol's promise strictly: two threads at a time, or a
call after `close`, fail the call.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve.core import (
    ABSENT,
    REGRESSION_STATISTICS,
    Batch,
    Column,
    ColumnKind,
    Matrix,
    ModelDefinition,
    QueryTable,
    Task,
)
from serve.core.errors import InvalidInput, InvalidModel

# Irrational steps, so that no two columns, classes or neighbouring integers get the same weight.
_COLUMN_STEP = math.sqrt(2) - 1
_CLASS_STEP = math.sqrt(3) - 1


@dataclass(frozen=True, eq=False)
class FakeContext:
    """A fitted context of number columns; without classes it is a regressor's.

    A cell is an int or a float, finite, or None for missing (NaN); anything else is refused.
    """

    columns: tuple[Column, ...] = tuple(Column(name, ColumnKind.NUMBER) for name in ("a", "b", "c"))
    classes: tuple[str, ...] = ("0", "1")
    rows: Matrix = field(default_factory=lambda: np.arange(48, dtype=np.float64).reshape(16, 3))

    @property
    def num_outputs(self) -> int:
        return len(self.classes) or len(REGRESSION_STATISTICS)

    @property
    def backend(self) -> str:
        return "compiled"

    def encode_context(self) -> Matrix:
        return self.rows

    def encode(self, table: QueryTable) -> Matrix:
        names = [column.name for column in self.columns]
        by_name = dict(zip(table.names, table.columns, strict=True))
        for row in range(table.num_rows):
            for name, cells in by_name.items():
                if name not in names and cells[row] is not ABSENT:
                    raise InvalidInput(f"no column {name!r}", code="unknown_column", row=row, column=name)
            for name in names:
                if name not in by_name or by_name[name][row] is ABSENT:
                    raise InvalidInput(f"column {name!r} is missing", code="missing_column", row=row, column=name)
        numbers = [[_number(by_name[name][row], row, name) for name in names] for row in range(table.num_rows)]
        return _matrix(self.columns, numbers)


class FakeEngine:
    """Answers by `fake_answer`.

    Args:
        cost_s: seconds that a batch of so many rows occupies the device; none at all by default.
        gate: called with each batch before it is answered, on the device thread: blocks, raises, records.
    """

    device = "cpu"
    lost = False

    def __init__(
        self, cost_s: Callable[[int], float] | None = None, gate: Callable[[Batch], None] | None = None
    ) -> None:
        self._cost_s = cost_s
        self._gate = gate
        self._in_use = threading.Lock()
        self._closed = False

    def fit(self, model: ModelDefinition) -> FakeContext:
        with self._exclusive():
            context = model.context
            for column in context.columns:
                if column.kind is not ColumnKind.NUMBER:
                    raise InvalidModel(f"FakeEngine reads number columns only; {column.name!r} is {column.kind}")
            cells = [[context.cells[column.name][i] for column in context.columns] for i in range(context.num_rows)]
            classified = context.task is Task.CLASSIFICATION
            classes = tuple(sorted({str(label) for label in context.target})) if classified else ()
            return FakeContext(context.columns, classes, _matrix(context.columns, cells))

    def predict(self, batch: Batch) -> Matrix:
        with self._exclusive():
            if self._gate is not None:
                self._gate(batch)
            if self._cost_s is not None:
                time.sleep(self._cost_s(len(batch.rows)))
            return fake_answer(batch)

    def reference(self, batch: Batch) -> Matrix:
        with self._exclusive():
            alone = [fake_answer(Batch(batch.context, batch.rows[i : i + 1])) for i in range(len(batch.rows))]
            return np.concatenate(alone)

    def close(self) -> None:
        with self._exclusive():
            self._closed = True

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        assert self._in_use.acquire(blocking=False), "an engine is called from one thread at a time"
        try:
            assert not self._closed, "the engine was closed"
            yield
        finally:
            self._in_use.release()


def fake_answer(batch: Batch) -> Matrix:
    """What FakeEngine answers: float64 [rows, outputs].

    A classifier's probabilities sum to 1; a regressor's statistics have the right order among them.
    """
    # Bounded and element by element: no overflow, and a row's company cannot change its rounding.
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
    """Distance from the score: 0 for mean and median, the quantile's own distance from the middle for the rest."""
    return 0.0 if statistic in ("mean", "median") else int(statistic.removeprefix("q")) / 100 - 0.5


def _matrix(columns: Sequence[Column], cells: Sequence[Sequence[Any]]) -> Matrix:
    # The shape is said because it cannot be seen from no rows; float64 turns None into NaN.
    return np.array(cells, dtype=np.float64).reshape(len(cells), len(columns))


def _number(value: object, row: int, column: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{value!r} is not a number", code="wrong_type", row=row, column=column)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInput(f"{value!r} is not finite", code="out_of_range", row=row, column=column)
    return number
