"""Prepared rows to the tokens that v2, v2.5 and v2.6 compute on: a group of columns is one token.

All that the context decides is given here (what stands for a missing value, scales, which columns are constant), so
that a row's tokens are its own. In float32 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Cells:
    """Prepared rows to tokens, by the statistics of the context: `TabPFNV2._embed_features`, statistics given.

    Cells are float32 [members, 1, groups * features_per_group] here; the library's [groups, features_per_group].
    """

    num_groups: int
    source: torch.Tensor  # int64: the column to read each cell from
    zero: int  # the column that is all zero, at the rows' width or beyond
    fill: torch.Tensor  # in the place of what is not finite
    mean: torch.Tensor
    deviation: torch.Tensor
    factor: torch.Tensor  # evens out groups in which columns are constant
    used: torch.Tensor  # bool: a constant column's cell becomes 0, whatever it holds
    projections: Sequence[torch.Tensor]  # from 2 * features_per_group, values then flags, to emsize; GELU between
    columns: torch.Tensor  # [groups, emsize]: the random embeddings
    target: torch.Tensor  # [members, 1, 1, emsize]: the target column of any test row

    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [members, rows, width] to [members, rows, groups + 1, emsize]."""
        _, num_rows, width = rows.shape
        # One more zero column than the library pads with: where its groups are short, ours read that one.
        cells = functional.pad(rows, (0, self.zero - width + 1)).gather(2, self.source.expand(-1, num_rows, -1))
        infinite = torch.isinf(cells)
        # Flags as in _generate_nan_and_inf_indicator: -2 for NaN, 2 for +inf, 4 for -inf.
        flags = torch.isnan(cells) * -2.0 + infinite * torch.where(cells > 0, 2.0, 4.0)
        values = torch.where(flags == 0, cells, self.fill)
        values = ((values - self.mean) / self.deviation).clip(-100, 100)
        values = torch.where(self.used, values * self.factor, 0.0)
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
        """From the statistics of the caches' groups: [members * groups, features_per_group], `num_used` [..., 1].

        Args:
            drawn: what the columns' embeddings are projected from, [groups, emsize / 4].
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
            used=flat(used),
            projections=[layer.weight.detach().float() for layer in projections],
            columns=functional.linear(drawn.float(), columns.weight.detach().float(), columns.bias.detach().float()),
            target=target.view(len(target), 1, 1, -1),
        )


def find_sources(kept: torch.Tensor) -> torch.Tensor:
    """Where each cell comes from, int64 [members, 1, padded width], as `_remove_constant_features` moves columns.

    A group's kept columns come first, in order; zeros follow. `kept` is [members, groups, features_per_group].
    """
    members, groups, per_group = kept.shape
    order = torch.argsort(kept.int(), dim=-1, descending=True, stable=True)
    first = torch.arange(groups, device=kept.device).view(1, groups, 1) * per_group
    filled = torch.arange(per_group, device=kept.device) < kept.sum(-1, keepdim=True)
    return torch.where(filled, order + first, groups * per_group).view(members, 1, -1)


def draw_columns(network: Any, num_groups: int, seed: int, like: torch.Tensor) -> torch.Tensor:
    """As `TabPFNV2.add_column_embeddings`: on the device and in the dtype in which the cache was built."""
    generator = torch.Generator(device=like.device).manual_seed(seed)
    shape = (num_groups, network.feature_positional_embedding_embeddings.in_features)
    return torch.randn(shape, device=like.device, dtype=like.dtype, generator=generator)
