"""Missing and infinite cells, as every architecture marks them for its network."""

from __future__ import annotations

import math

import torch


def mark_missing(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cells are finite, bool, and tabpfn's indicators: 0, or -2 for NaN, 2 for inf, 4 for -inf; both [...]."""
    finite = cells.abs() < math.inf  # `isfinite` takes four kernels
    return finite, torch.nan_to_num(cells, nan=-2.0, posinf=2.0, neginf=4.0).masked_fill_(finite, 0.0)
