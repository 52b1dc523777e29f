"""What v3 and v3.5 make of a table's values before they embed them: statistics of the context, and neighbours."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from serve.engine.forward.layers import ComputeSpec

_ROUNDING = 1e-5
"""Of the largest value; measured 1e-6."""


class SharedColumns:
    """Which columns and cells are the same in several members, so that one of each kind is computed.

    Members differ in the order of their columns and in how some are prepared, and share most of them. A cell is known
    by the columns that stand in it and by what the cache keeps of its context: members that number the classes
    otherwise have other inducing states for the same column.

    Attributes:
        columns: one of each kind, its place among all members' columns laid end to end; int64 [column kinds].
        neighbours: the kinds of the columns in a cell, for each kind of cell; int64 [cell kinds * group].
        cells: one of each kind, its place among all members' cells laid end to end; int64 [cell kinds].
        kinds: of all cells; int64 [B, C].
    """

    def __init__(self, columns: torch.Tensor | None, caches: Sequence[Any], group: int, spec: ComputeSpec) -> None:
        """`columns` as a `Builder` is given them; a cell holds `group` of them (`_group_features`)."""
        means, stds = (torch.cat([cache.scaler_cache[name] for cache in caches]).cpu() for name in ("mean", "std"))
        num_members, num_columns = means.shape
        facts = [means.flatten(), stds.flatten()]
        if hasattr(caches[0], "ecdf_context"):
            facts.append(torch.cat([c.ecdf_context for c in caches], 1).permute(1, 2, 0, 3).flatten(0, 1).cpu())
        numbers = torch.arange(means.numel()) if columns is None else columns.flatten()
        own, column_kinds = _find_kinds(numbers.tolist(), facts)

        beside = torch.stack([(torch.arange(num_columns) + 2**i) % num_columns for i in range(group)], dim=1)
        in_cell = torch.tensor(column_kinds).view(num_members, num_columns)[:, beside].flatten(0, 1)
        hidden = [torch.cat(parts).cpu() for parts in zip(*(cache.inducing_hidden for cache in caches), strict=True)]
        cells, kinds = _find_kinds([tuple(cell) for cell in in_cell.tolist()], hidden)

        self.columns, self.cells = torch.tensor(own, device=spec.device), torch.tensor(cells, device=spec.device)
        self.neighbours = in_cell[cells].flatten().to(spec.device)
        self.kinds = torch.tensor(kinds, device=spec.device).view(num_members, num_columns)


def _find_kinds(names: Sequence[Hashable], facts: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    """The first place of each kind, and the kind of every place: one name, and equal facts [places, ...]."""
    firsts: list[int] = []
    kinds: list[int] = []
    known: dict[Hashable, list[int]] = {}
    for place, name in enumerate(names):
        candidates = known.setdefault(name, [])
        alike = [kind for kind in candidates if all(_are_equal(fact[firsts[kind]], fact[place]) for fact in facts)]
        if not alike:
            alike.append(len(firsts))
            firsts.append(place)
            candidates += alike
        kinds.append(alike[0])
    return firsts, kinds


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """To within the rounding of a product, which may differ from place to place in a batch."""
    largest = float(first.abs().nan_to_num(posinf=0).max())
    return torch.allclose(first, second, rtol=0, atol=_ROUNDING * largest, equal_nan=True)


class Scaling:
    """Imputes and standardises by the context (`_preprocess_raw`), and says what was missing."""

    def __init__(self, caches: Sequence[Any], columns: torch.Tensor, spec: ComputeSpec) -> None:
        """`columns` are places among all members' columns laid end to end."""
        self._mean = spec.stack(caches, lambda cache: cache.scaler_cache["mean"]).flatten()[columns, None]
        # The epsilon is that of the dtype which the statistics were stored in.
        std = spec.stack(caches, lambda c: c.scaler_cache["std"] + torch.finfo(c.scaler_cache["std"].dtype).eps)
        self._std = std.flatten()[columns, None]

    def __call__(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """float32 [columns, R] to values without gaps, the same standardised, and indicators; float32 [columns, R]."""
        finite = torch.isfinite(values)
        indicators = torch.where(finite, 0.0, torch.nan_to_num(values, nan=-2.0, posinf=2.0, neginf=4.0))
        values = torch.where(finite, values, self._mean)
        return values, ((values - self._mean) / self._std).clamp(-100, 100), indicators
