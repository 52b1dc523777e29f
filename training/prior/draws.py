"""Array types and draws that several mechanisms share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Values = NDArray[np.float64]
Rng = np.random.Generator


def normal(rng: Rng, *shape: int) -> Floats:
    """Standard normal numbers of this shape."""
    return rng.standard_normal(shape, dtype=np.float32)


def latents(rng: Rng, num_rows: int, num_columns: int) -> Floats:
    """Independent sources [rows, columns]: normal, uniform, heavy-tailed or clustered."""
    choice = rng.random()
    if choice < 0.5:
        return normal(rng, num_rows, num_columns)
    if choice < 0.7:
        return f32(rng.uniform(-1.7, 1.7, (num_rows, num_columns)))
    if choice < 0.85:
        return f32(np.clip(rng.standard_t(3, (num_rows, num_columns)), -12, 12))
    centres = normal(rng, int(rng.integers(2, 8)), num_columns) * 1.5
    return centres[rng.integers(0, len(centres), num_rows)] + 0.5 * normal(rng, num_rows, num_columns)


def unequal_shares(rng: Rng, num_parts: int) -> Values:
    """Unequal shares [parts] that sum to one."""
    return rng.dirichlet(np.full(num_parts, rng.choice([0.3, 0.8, 2.0])) + 1e-3)


def standardise(values: Floats) -> Floats:
    """Columns of mean 0 and standard deviation 1. A constant column becomes zeros."""
    spread = values.std(axis=0)
    return f32((values - values.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0))


def f32(values: NDArray[np.generic]) -> Floats:
    """The same numbers as float32."""
    return values.astype(np.float32)
