"""Operations whose result depends on many columns of a row: projections and fingerprints.

They are the operations through which the size of a batch could change an answer. The order of summation of a matrix
product depends on the product's shape. A fingerprint is a hash of its row, so a difference in the last bit of one value
gives another number altogether. Therefore each row is multiplied alone, in the shape that tabpfn uses for a single row,
and has the bits that tabpfn computes for that row alone (tests/engine/preprocessing/test_joins.py).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from serve.engine.preprocessing.graph import Array

_HASHED_DECIMALS = 12
_LARGEST_HASH = 2**64 - 1


class Projection:
    """scikit-learn's TruncatedSVD.transform, row by row.

    Args:
        components: [components, columns], with the strides of the fit, because strides decide numpy's routine.
    """

    def __init__(self, components: Array) -> None:
        self._components = components.T

    def __call__(self, x: Array) -> Array:
        rows = np.ascontiguousarray(x.T).reshape(x.shape[1], 1, len(x))
        # numpy multiplies stacked matrices of one row each one by one
        projected: Array = np.matmul(rows, self._components)[:, 0].T
        return projected


class TorchProjection:
    """tabpfn's TorchTruncatedSVD.transform, row by row. Its input is finite (`SafeScale`)."""

    def __init__(self, components: Array) -> None:
        self._components = torch.from_numpy(components).T

    def __call__(self, x: Array) -> Array:
        rows = torch.from_numpy(np.ascontiguousarray(x.T))
        projected: Array = torch.cat([row @ self._components for row in torch.split(rows, 1)]).numpy().T
        return projected


class Fingerprint:
    """A hash of the row's values in [0, 1], as for test rows in tabpfn's steps/add_fingerprint_features_step.py.

    Args:
        salt: array of shape [], the number of cells in the fit.
    """

    def __init__(self, salt: Array) -> None:
        self._salt = int(salt).to_bytes(8, "little", signed=False)

    def __call__(self, x: Array) -> Array:
        rounded = np.ascontiguousarray(np.around(x.T, decimals=_HASHED_DECIMALS))
        hashes = [
            int.from_bytes(hashlib.sha256(row.tobytes() + self._salt).digest()[-8:], "big") / _LARGEST_HASH
            for row in rounded
        ]
        return np.array([hashes], dtype=x.dtype)
