"""How the cells of a column become the numbers of the matrix: learned by `cleaning.py`, used by `row_encoder.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve.core import Column, ColumnKind
from serve.engine.datetimes import DATETIME_PARTS

RawCell = float | str | None
"""A cell as tabpfn sees it in a fit: a number (NaN for missing) or a category's name (None for missing)."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a raw cell becomes the number in the matrix.

    Attributes:
        codes: the number of each known value; None passes numbers through.
        missing: the number of a missing cell.
        unknown: the number of a value that `codes` lacks.
        constant: the number of every cell, for a column that held a single value in the context; else None.
        keeps_zero_sign: -0.0 stays negative where numbers pass through; else it becomes 0.0. A fingerprint tells them
            apart.
        limits: the least and the largest number that the fitted preprocessing can transform; None: any.
    """

    codes: Mapping[RawCell, float] | None = None
    missing: float = math.nan
    unknown: float = -1.0
    constant: float | None = None
    keeps_zero_sign: bool = True
    limits: tuple[float, float] | None = None

    @property
    def is_identity(self) -> bool:
        """Numbers pass through unchanged, but for the sign of zero."""
        return self.codes is None and self.constant is None

    @property
    def is_empty(self) -> bool:
        """The column was empty in the context, so that each cell becomes missing."""
        return self.constant is not None and math.isnan(self.constant)

    def encode(self, cells: Sequence[RawCell]) -> Sequence[RawCell]:
        """The numbers of one column's cells."""
        if self.constant is not None:
            return [self.constant] * len(cells)
        if self.codes is None:
            return cells
        codes, missing, unknown = self.codes, self.missing, self.unknown
        return [missing if cell is None or cell != cell else codes.get(cell, unknown) for cell in cells]


def feature_names(columns: Sequence[Column]) -> list[str]:
    """Names of the matrix columns: the inputs in order, a datetime as its parts."""
    names = []
    for column in columns:
        if column.kind is ColumnKind.DATETIME:
            names += [f"{column.name}:{part}" for part in DATETIME_PARTS]
        else:
            names.append(column.name)
    return names


def width(column: Column) -> int:
    """Matrix columns of one input column."""
    return len(DATETIME_PARTS) if column.kind is ColumnKind.DATETIME else 1
