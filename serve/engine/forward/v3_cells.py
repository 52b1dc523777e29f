"""What v3 and v3.5 make of a table's values before they embed them: statistics of the context, and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from serve.engine.forward.layers import Place


class Scaling:
    """Imputes and standardises by the context (`_preprocess_raw`), and says what was missing."""

    def __init__(self, caches: Sequence[Any], place: Place) -> None:
        self._mean = place.stack(caches, lambda cache: cache.scaler_cache["mean"])[..., None]
        # The epsilon is that of the dtype which the statistics were stored in.
        std = place.stack(caches, lambda c: c.scaler_cache["std"] + torch.finfo(c.scaler_cache["std"].dtype).eps)
        self._std = std[..., None]

    def __call__(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """float32 [B, C, R] to values without gaps, the same standardised, and indicators; each float32 [B, C, R]."""
        finite = torch.isfinite(values)
        indicators = torch.where(finite, 0.0, torch.nan_to_num(values, nan=-2.0, posinf=2.0, neginf=4.0))
        values = torch.where(finite, values, self._mean)
        return values, ((values - self._mean) / self._std).clamp(-100, 100), indicators


def find_neighbours(num_columns: int, group: int, place: Place) -> torch.Tensor:
    """The columns that stand beside each in its cell, int64 [C * group] (`_group_features`)."""
    columns = torch.arange(num_columns, device=place.device)
    return torch.stack([(columns + 2**i) % num_columns for i in range(group)], dim=1).flatten()
