"""The test-only forward pass of tabpfn_v3_5: the stages of `v3_stages.py` on cells of ranks and waves.

The reference is `TabPFNV3p5.forward`, given a KV cache and test rows alone. Axes are those of `v3_stages.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

from serve.engine.forward import Group
from serve.engine.forward.layers import ComputeSpec, FeedForward
from serve.engine.forward.v3_cells import Scaling, SharedColumns
from serve.engine.forward.v3_stages import StagedForward, join_groups
from serve.engine.forward.votes import Votes


def build(
    network: torch.nn.Module,
    groups: Sequence[Group],
    task_type: str,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
) -> StagedForward:
    """The forward pass of the groups, on the network's device; see `serve.engine.forward.Builder`.

    It keeps no reference to the groups' caches, which may be dropped.

    Raises:
        ValueError: the network lacks the task type, or one of the labels.
    """
    if task_type not in ("multiclass", "regression"):
        raise ValueError(f"task type {task_type!r} is neither 'multiclass' nor 'regression'")
    with torch.inference_mode():
        spec = ComputeSpec(next(network.parameters()).device, dtype, kv_dtype)
        heads, group_size = cast(Any, network).heads, cast(Any, network).x_embed.group_size
        caches, targets = join_groups(groups)
        head: list[Callable[[torch.Tensor], torch.Tensor]]
        if task_type == "multiclass":
            mlp = heads.mlp_classification
            head = [FeedForward(mlp.norm, mlp.mlp, spec), Votes(heads.many_class_decoder, caches, targets, spec)]
        else:
            mlp = heads.mlp_regression
            head = [FeedForward(mlp.norm, mlp.mlp, spec), spec.exact_linear(heads.output_projection)]
        return StagedForward(network, groups, group_size, _Cells, head, spec)


class _Cells:
    """Stage 0: values to embedded cells (`_preprocess_raw`, `_group_features`, `x_embed`)."""

    def __init__(self, network: Any, caches: Sequence[Any], shared: SharedColumns, spec: ComputeSpec) -> None:
        self._scaling = Scaling(caches, shared.columns, spec)
        context = spec.stack(caches, lambda cache: cache.ecdf_context, dim=1).flatten(1, 2)[:, shared.columns]
        num_columns, num_edges = context.shape[1:]
        self._edges = context[0].contiguous()
        self._num_rows = context[2, :, -1:]
        self._table = _edge_table(context)
        self._starts = torch.arange(num_columns, device=spec.device)[:, None] * num_edges

        embed = network.x_embed
        group, frequencies = embed.group_size, embed.ecdf_num_frequencies
        self._neighbours, self._group = shared.neighbours, group
        self._phases = math.pi * torch.arange(1, frequencies + 1, device=spec.device, dtype=torch.float32)
        self._frequencies = spec.exact(embed.fourier.frequencies)
        self._weight = torch.cat([spec.exact(embed.fourier.in_linear.weight), _by_neighbour(embed, spec)], dim=1)
        norm = embed.layernorm
        self._norm = (norm.normalized_shape, spec.exact(norm.weight), spec.exact(norm.bias), norm.eps)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """float32 [columns, R] to float32 [cells, R, E]."""
        values, scaled, indicators = self._scaling(values)
        phases = self._rank(values).unsqueeze(-1) * self._phases
        features = torch.cat([scaled[..., None], indicators[..., None], phases.sin(), phases.cos()], dim=-1)
        grouped = torch.unflatten(features.index_select(0, self._neighbours), 0, (-1, self._group)).transpose(1, 2)
        waves = grouped[..., :1] * self._frequencies
        summed = torch.cat([waves.sin().sum(-2), waves.cos().sum(-2), grouped.flatten(-2)], dim=-1)
        return F.layer_norm(F.linear(summed, self._weight), *self._norm)

    def _rank(self, values: torch.Tensor) -> torch.Tensor:
        """Midrank of each value among the context's, 0 to 1 (`_in_context_ecdf`).

        Clamping the value to the outer edges gives the midrank of the nearest extreme, as tabpfn's clamp of the counts
        does. One search is then enough: a value is an edge if the first edge that is not below it equals it.
        """
        clamped = values.clamp(self._edges[:, :1], self._edges[:, -1:])
        edge = torch.searchsorted(self._edges, clamped).clamp(max=self._edges.shape[1] - 1) + self._starts
        facts = self._table.index_select(0, edge.flatten()).view(*edge.shape, -1)
        high, low, distance, low_at_most, rise, midrank = facts.unbind(-1)
        between = low_at_most + (clamped - low) / distance * rise
        return torch.where(clamped == high, midrank, between) / self._num_rows


def _edge_table(context: torch.Tensor) -> torch.Tensor:
    """What a rank needs of an edge and of the edge before it: float32 [columns * edges, 6].

    At a column's first edge the edge before it is another column's. It is unused, as the value is then an edge.

    Args:
        context: float32 [3, columns, edges]: an edge's value, the number of context values below it, and the number at
            or below it.
    """
    high, below, at_most = context.flatten(1)
    low, _, low_at_most = torch.cat([context.flatten(1)[:, :1], context.flatten(1)[:, :-1]], dim=1)
    table = (high, low, high - low, low_at_most, below - low_at_most, 0.5 * (below + at_most))
    return torch.stack(table, dim=1)


def _by_neighbour(embed: Any, spec: ComputeSpec) -> torch.Tensor:
    """The metadata weights, columns ordered by neighbour, and within a neighbour: value, indicator, sines and cosines
    of its rank."""
    weight = spec.exact(embed.metadata_linear.weight)
    group = embed.group_size
    values, indicators, ranks = weight[:, :group], weight[:, group : 2 * group], weight[:, 2 * group :]
    parts = [values[..., None], indicators[..., None], torch.unflatten(ranks, 1, (group, -1))]
    return torch.cat(parts, dim=-1).flatten(1)
