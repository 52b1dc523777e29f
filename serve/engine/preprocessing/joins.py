"""Operations whose result depends on many columns of a row: projections and fingerprints.

They are the operations through which the size of a batch could change an answer. The order of summation of a matrix
product depends on the product's shape. A fingerprint is a hash of its row, so a difference in the last bit of one value
gives another number altogether. Therefore each row has the bits that tabpfn computes for that row alone
(tests/engine/preprocessing/test_joins.py). It is multiplied alone, in the shape that tabpfn uses for a single row, or
by a routine that adds in the same order for any number of rows.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct

import numpy as np
import torch
from numpy.typing import NDArray

from serve.engine.preprocessing.graph import Array

_HASHED_DECIMALS = 12
_LARGEST_HASH = 2**64 - 1
_END_OF_DIGEST = Struct(">24xQ")
_TRIAL_ROWS = 64
_MANY_ROWS = 32
"""From here on, one call for all rows is faster than one for each; below, the other way round."""


class Projection:
    """scikit-learn's TruncatedSVD.transform, with the bits of each row alone.

    The components of a fresh fit have a negative stride. BLAS takes none, so numpy multiplies them in a loop of its own
    that adds one product after the other. `einsum` adds in the same order, and treats many rows at once. Whether both
    give the same bits depends on strides, on numpy's build and on the processor, so it is tried once.

    Args:
        components: [components, columns], with the strides of the fit, because strides decide numpy's routine.
    """

    def __init__(self, components: Array) -> None:
        self._components = components.T
        self._ordered = np.ascontiguousarray(components.T)
        trial = np.random.default_rng(0).normal(size=(len(self._components), _TRIAL_ROWS)).astype(components.dtype)
        self._adds_in_order = np.array_equal(self._together(trial), self._one_by_one(trial))

    def __call__(self, x: Array) -> Array:
        many = x.shape[1] >= _MANY_ROWS
        return self._together(x) if many and self._adds_in_order else self._one_by_one(x)

    def _one_by_one(self, x: Array) -> Array:
        rows = np.ascontiguousarray(x.T).reshape(x.shape[1], 1, len(x))
        # numpy multiplies stacked matrices of one row each one by one
        projected: Array = np.matmul(rows, self._components)[:, 0].T
        return projected

    def _together(self, x: Array) -> Array:
        projected: Array = np.einsum("kr,kc->cr", x, self._ordered)
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
        cells, width = x.T.round(_HASHED_DECIMALS).tobytes(), len(x) * x.itemsize
        digests = b"".join([sha256(cells[at : at + width] + self._salt).digest() for at in range(0, len(cells), width)])
        if x.shape[1] < _MANY_ROWS:
            hashes = np.array([number / _LARGEST_HASH for (number,) in _END_OF_DIGEST.iter_unpack(digests)])
        else:
            hashes = divide_by_largest_hash(np.frombuffer(digests, dtype=">u8")[3::4])
        return hashes[None].astype(x.dtype, copy=False)


def divide_by_largest_hash(hashes: NDArray[np.uint64]) -> Array:
    """`hash / (2**64 - 1)` of many hashes, rounded once, as Python divides integers; float64.

    The quotient is 2**-64 times the hash and a fraction of 1 more. From 2**53 on only integers lie halfway between two
    floats, so one half more is rounded as that fraction is. A smaller hash is a float, and the nearest to the quotient.
    """
    low = (hashes & 0xFFFFFFFF) + 0.5 * (hashes >= 2**53)
    quotients: Array = ((hashes >> 32) * 2.0**32 + low) * 2.0**-64
    return quotients
