"""Products of 16-bit numbers whose sums leave the GPU's kernel in float32: one kernel for a product, a cast and a sum.

A launch takes a GPU longer than the arithmetic of a row, so a forward pass of few rows takes the time of its kernels.
torch has these products on CUDA alone, and not in every version. They are tried once for each device and number format,
before a forward pass uses them.
"""

from __future__ import annotations

import functools
import logging

import torch

_log = logging.getLogger(__name__)


@functools.cache
def has_exact_sums(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has these products here, and they are right. False for float32, which needs none, and on a CPU."""
    if device.type != "cuda" or dtype == torch.float32:
        return False
    try:
        is_right = _is_right(device, dtype)
    except (RuntimeError, TypeError) as error:
        _log.warning("%s products with float32 sums failed on %s; forward passes take longer: %s", dtype, device, error)
        return False
    if not is_right:
        _log.warning("%s products with float32 sums are wrong on %s; forward passes take longer", dtype, device)
    return is_right


def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    left, right = torch.ones(8, 2048, device=device, dtype=dtype), torch.ones(8, 2048, device=device, dtype=dtype)
    total = torch.full((8, 8), 0.25, device=device)
    add_product(total, left, right)  # neither 16-bit format can hold 2048.25
    products = (multiply(left, right), multiply_batches(left[None], right.t()[None])[0])
    return bool((total == 2048.25).all()) and all(bool((product == 2048).all()) for product in products)


def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T in float32: 16-bit x [rows, in] and W [out, in] to [rows, out]."""
    return torch.mm(x, weight.t(), out_dtype=torch.float32)


def add_product(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Adds x W^T to `total`, float32 [rows, out], in place."""
    torch.addmm(total, x, weight.t(), out_dtype=torch.float32, out=total)


def multiply_batches(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x W in float32, batch by batch: 16-bit x [batch, rows, in] and W [batch, in, out] to [batch, rows, out]."""
    return torch.bmm(x, weights, out_dtype=torch.float32)
