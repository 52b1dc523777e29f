"""Prepared rows to the tokens that v2, v2.5 and v2.6 compute on; a token is a group of columns.

The context decides the replacement of a missing value, the scales, and which columns are constant, so a row's tokens
depend on that row alone. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from serve.engine.forward.missing import mark_missing


@dataclass(frozen=True, eq=False)
class Cells:
    """Prepared rows to tokens, as `TabPFNV2._embed_features` with given statistics of the context.

    Statistics of cells are [members, 1, groups * features_per_group] here; in tabpfn [groups, features_per_group].
    """

    num_groups: int
    source: torch.Tensor  # int64: the column that each cell is read from
    zero: int  # number of a column of zeros, at the rows' width or beyond
    fill: torch.Tensor  # replaces values that are not finite
    mean: torch.Tensor
    deviation: torch.Tensor
    factor: torch.Tensor  # evens out groups in which columns are constant
    unused: torch.Tensor  # bool: True for a constant column, whose cell becomes 0
    projections: Sequence[torch.Tensor]  # from 2 * features_per_group, values then flags, to emsize; GELU between
    columns: torch.Tensor  # [groups, emsize]: the random embeddings
    target: torch.Tensor  # [members, 1, 1, emsize]: the target column, equal for all test rows

    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [members, rows, width] to [members, rows, groups + 1, emsize]."""
        _, num_rows, width = rows.shape
        # tabpfn pads short groups with zero columns; here one zero column serves them all.
        cells = functional.pad(rows, (0, self.zero - width + 1)).gather(2, self.source.expand(-1, num_rows, -1))
        finite, flags = mark_missing(cells)
        values = torch.where(finite, cells, self.fill)
        values = ((values - self.mean) / self.deviation).clip(-100, 100)
        values = (values * self.factor).masked_fill_(self.unused, 0.0)
        groups = (self.num_groups, self.projections[0].shape[1] // 2)
        embedded = torch.cat([torch.unflatten(part, -1, groups) for part in (values, flags)], dim=-1)
        for index, projection in enumerate(self.projections):
            embedded = functional.linear(functional.gelu(embedded) if index else embedded, projection)
        return torch.cat([embedded + self.columns, self.target.expand(-1, num_rows, -1, -1)], dim=2)

    @classmethod
    def make(
        cls, network: Any, caches: Sequence[Any], drawn: torch.Tensor, source: torch.Tensor, zero: int,
        projections: Sequence[Any], *, fill: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor,
        used: torch.Tensor, num_used: torch.Tensor,
    ) -> Cells:  # fmt: skip
        """Cells from the caches' statistics, which are [members * groups, features_per_group]; `num_used` [..., 1].

        Args:
            drawn: [groups, emsize / 4], from which the columns' embeddings are projected.
            projections: the linear layers of a group's embedding.
        """
        target = torch.cat([cache.test_y_embedding for cache in caches]).float()

        def flat(statistic: torch.Tensor) -> torch.Tensor:
            return statistic.reshape(len(target), 1, source.shape[-1]).contiguous()

        factor = torch.sqrt(network.features_per_group / num_used).expand_as(used)  # _normalize_feature_groups
        columns = network.feature_positional_embedding_embeddings
        return cls(
            num_groups=len(drawn),
            source=source,
            zero=zero,
            fill=flat(fill.float()),
            mean=flat(mean.float()),
            deviation=flat((deviation + torch.finfo(deviation.dtype).eps).float()),
            factor=flat(factor.float()),
            unused=flat(used.logical_not()),
            projections=[layer.weight.detach().float() for layer in projections],
            columns=functional.linear(drawn.float(), columns.weight.detach().float(), columns.bias.detach().float()),
            target=target.view(len(target), 1, 1, -1),
        )


@dataclass(frozen=True, eq=False)
class Part:
    """Members with equal numbers of tokens.

    Attributes:
        group: number of the tensor of rows in which the members are.
        members: their positions in that tensor, int64; None takes all, in order.
        caches: tabpfn's KV caches of the members.
        cells: how their rows become tokens.
    """

    group: int
    members: torch.Tensor | None
    caches: Sequence[Any]
    cells: Cells

    def embed(self, rows: Sequence[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """The tokens of rows `start` to `stop`: float32 [members, rows, columns, emsize]."""
        own = rows[self.group][:, start:stop]
        return self.cells.embed(own if self.members is None else own.index_select(0, self.members))


def find_sources(kept: torch.Tensor) -> torch.Tensor:
    """The column that each cell is read from, int64 [members, 1, padded width], as by `_remove_constant_features`.

    A group's kept columns come first, in order; zero columns follow. `kept` is [members, groups, features_per_group].
    """
    members, groups, per_group = kept.shape
    order = torch.argsort(kept.int(), dim=-1, descending=True, stable=True)
    first = torch.arange(groups, device=kept.device).view(1, groups, 1) * per_group
    filled = torch.arange(per_group, device=kept.device) < kept.sum(-1, keepdim=True)
    return torch.where(filled, order + first, groups * per_group).view(members, 1, -1)


def draw_columns(network: Any, num_groups: int, seed: int, like: torch.Tensor) -> torch.Tensor:
    """Random numbers [num_groups, width] as `TabPFNV2.add_column_embeddings` draws them, on the device and in the dtype
    of `like`, a tensor of the cache."""
    generator = torch.Generator(device=like.device).manual_seed(seed)
    shape = (num_groups, network.feature_positional_embedding_embeddings.in_features)
    return torch.randn(shape, device=like.device, dtype=like.dtype, generator=generator)
