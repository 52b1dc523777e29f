"""Operations in which a result depends on many columns of its row: projections and fingerprints.

They are where the size of a batch could reach an answer. A fingerprint is a hash of its row, so that a difference in
the last bit of one value in front of it makes it another number altogether. The order of summation of a matrix product
depends on its shape; therefore each row is multiplied by itself, in the shape that the library gives a row that comes
alone, and its bits are those of the library for that row alone (tests/engine/preprocessing/test_joins.py).
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
        components: [components, columns], with the strides that they were fitted with: these choose numpy's routine.
    """

    def __init__(self, components: Array) -> None:
        self._components = components.T

    def __call__(self, x: Array) -> Array:
        rows = np.ascontiguousarray(x.T).reshape(x.shape[1], 1, len(x))
        # stacked matrices of one row each: numpy multiplies them one by one
        projected: Array = np.matmul(rows, self._components)[:, 0].T
        return projected


class TorchProjection:
    """tabpfn's TorchTruncatedSVD.transform, row by row; its input is finite (`SafeScale`)."""

    def __init__(self, components: Array) -> None:
        self._components = torch.from_numpy(components).T

    def __call__(self, x: Array) -> Array:
        rows = torch.from_numpy(np.ascontiguousarray(x.T))
        projected: Array = torch.cat([row @ self._components for row in torch.split(rows, 1)]).numpy().T
        return projected


class Fingerprint:
    """A hash of the row's values, in [0, 1] (tabpfn steps/add_fingerprint_features_step.py, as for test rows).

    Args:
        salt: [], the number of cells that were fitted.
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
