"""What v3 and v3.5 compute from a table's values before they embed them: scaling by the context, and shared columns."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from serve.engine.forward.layers import ComputeSpec
from serve.engine.forward.missing import mark_missing

_ROUNDING = 1e-5
"""By how much the states of two equal cells may differ, relative to the largest value; 1e-6 was measured."""


class SharedColumns:
    """The columns and cells that several members share. One of each kind is computed for all members.

    Members share most of their columns; they differ in the order of the columns and in how some are prepared. Two
    columns are of one kind if they hold the same values and the caches hold the same statistics for them, to the bit.
    tabpfn's sums over the context may differ in the last bit between places of a batch. That bit decides on which side
    of a jump in rank the mean lies, which stands in for a missing cell, and ranks change the answer by 1e-4.

    Two cells are of one kind if they hold the same columns and the caches hold the same state for them, within
    rounding. The state enters as keys and values of an attention, where a last bit stays one. Members that number the
    classes differently have different states for the same column.

    A place is an index into the columns, or cells, of all members, joined in the order of the members.

    Attributes:
        columns: the first place of each kind of column; int64 [column kinds].
        neighbours: the kinds of the columns in a cell, for each kind of cell; int64 [cell kinds * group].
        cells: the first place of each kind of cell; int64 [cell kinds].
        kinds: the kind of every cell; int64 [B, C].
    """

    def __init__(self, columns: torch.Tensor | None, caches: Sequence[Any], group: int, spec: ComputeSpec) -> None:
        """`columns` as in `Group`; a cell holds `group` columns (tabpfn's `_group_features`)."""
        means, stds = (torch.cat([cache.scaler_cache[name] for cache in caches]).cpu() for name in ("mean", "std"))
        num_members, num_columns = means.shape
        statistics = [means.flatten(), stds.flatten()]
        if hasattr(caches[0], "ecdf_context"):
            statistics.append(torch.cat([c.ecdf_context for c in caches], 1).permute(1, 2, 0, 3).flatten(0, 1).cpu())
        numbers = torch.arange(means.numel()) if columns is None else columns.flatten()
        bits = zip(*([fact.numpy().tobytes() for fact in statistic] for statistic in statistics), strict=True)
        own, column_kinds = _find_kinds(list(zip(numbers.tolist(), bits, strict=True)), [])

        beside = torch.stack([(torch.arange(num_columns) + 2**i) % num_columns for i in range(group)], dim=1)
        in_cell = torch.tensor(column_kinds).view(num_members, num_columns)[:, beside].flatten(0, 1)
        hidden = [torch.cat(parts).cpu() for parts in zip(*(cache.inducing_hidden for cache in caches), strict=True)]
        cells, kinds = _find_kinds([tuple(cell) for cell in in_cell.tolist()], hidden)

        self.columns, self.cells = torch.tensor(own, device=spec.device), torch.tensor(cells, device=spec.device)
        self.neighbours = in_cell[cells].flatten().to(spec.device)
        self.kinds = torch.tensor(kinds, device=spec.device).view(num_members, num_columns)


def _find_kinds(names: Sequence[Hashable], facts: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    """The first place of each kind, and the kind of every place.

    Places of one kind have the same name and equal facts; each of `facts` is [places, ...].
    """
    firsts: list[int] = []
    kinds: list[int] = []
    known: dict[Hashable, list[int]] = {}
    for place, name in enumerate(names):
        candidates = known.setdefault(name, [])
        equal = [kind for kind in candidates if all(_are_equal(fact[firsts[kind]], fact[place]) for fact in facts)]
        if not equal:
            equal.append(len(firsts))
            firsts.append(place)
            candidates += equal
        kinds.append(equal[0])
    return firsts, kinds


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal within a product's rounding, which may differ between places of a batch."""
    largest = float(first.abs().nan_to_num(posinf=0).max())
    return torch.allclose(first, second, rtol=0, atol=_ROUNDING * largest, equal_nan=True)


class Scaling:
    """Imputes and standardises values by the context's statistics, and marks missing ones (`_preprocess_raw`)."""

    def __init__(self, caches: Sequence[Any], columns: torch.Tensor, spec: ComputeSpec) -> None:
        """`columns` are places; see `SharedColumns`."""
        self._mean = spec.stack(caches, lambda cache: cache.scaler_cache["mean"]).flatten()[columns, None]
        # tabpfn adds the epsilon of the dtype in which the statistics were stored.
        std = spec.stack(caches, lambda c: c.scaler_cache["std"] + torch.finfo(c.scaler_cache["std"].dtype).eps)
        self._std = std.flatten()[columns, None]

    def __call__(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """float32 [columns, R] to imputed values, standardised values, and indicators, each of the same shape."""
        finite, indicators = mark_missing(values)
        values = torch.where(finite, values, self._mean)
        return values, ((values - self._mean) / self._std).clamp(-100, 100), indicators
