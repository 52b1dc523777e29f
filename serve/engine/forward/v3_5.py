"""The test-only forward of tabpfn_v3_5: what `TabPFNV3p5.forward` computes given a KV cache and test rows alone.

What is always true:
- a row meets the cache and the weights, never another row: every operation below works cell by cell, row by row, or as
  an attention of one row's queries to cached keys;
- whatever depends on cache and weights alone is made once, in `build`: the columns' keys and values (the library
  projects and norms the cached inducing states in every call), rotary tables, attention scales of log(context rows),
  one-hot labels, packed weights;
- query heads that share a key/value head stand as further rows of one product, so no key is copied per head;
- shapes and chunks follow from the shapes of the input, so no call waits for the device.

`dtype` holds for weights, `kv_dtype` for the cached keys and values. The residual stream, norms, ranks, Fourier
features, softmax, attention scales and the last projection stay in float32, where the library keeps some of them in
bfloat16; on a CPU so do narrow layers and attention to few keys.

Axes: B members, R rows, C columns, E width of a cell, T tokens of a row, H heads, D width of a head, N context rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from tabpfn.architectures.kv_cache import QuantizedKVCacheEntry

from serve.engine.forward import Group
from serve.engine.forward.attention import MAX_EXP_SCORE, attend_tokens
from serve.engine.forward.layers import ComputeSpec, FeedForward, LengthScale, Norm, RotaryProjection, attend
from serve.engine.forward.v3_cells import Scaling, SharedColumns
from serve.engine.forward.votes import Votes

_MAX_TOKENS, _MAX_TOKENS_CPU = 1 << 18, 1 << 14
"""Cells (and readout tokens) that pass the column stages at once: bounds memory; on a CPU keeps them near the cache."""


def build(
    network: torch.nn.Module,
    groups: Sequence[Group],
    task_type: str,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
) -> StagedForward:
    """The forward of cache groups, on the network's device; see `serve.engine.forward.Builder`.

    Keeps no reference to their caches, which may be dropped. Raises ValueError on a task or label the network lacks.
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


def join_groups(groups: Sequence[Group]) -> tuple[list[Any], torch.Tensor]:
    """All groups' caches, and their targets [members, context rows], end to end."""
    return [cache for group in groups for cache in group.caches], torch.cat([group.targets for group in groups])


class StagedForward:
    """The forward of v3.5 and of v3, which differ in their embeddings' cells and in `head`: what follows the last norm.

    A row is as wide after stage 2 whatever the width of its table, so there the members of all groups meet: attention
    to the context and all that follows is one pass, for which weights are read once.

    Args:
        group_size: columns in a cell.
        make_cells: of network, caches, which columns are shared, and spec: float32 [columns, R], of each kind one, to
            float32 [cells, R, E], of each kind one.
        head: one after the other, float32 [B, R, T E] to logits.
    """

    def __init__(
        self,
        network: Any,
        groups: Sequence[Group],
        group_size: int,
        make_cells: Callable[[Any, Sequence[Any], SharedColumns, ComputeSpec], Callable[[torch.Tensor], torch.Tensor]],
        head: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        spec: ComputeSpec,
    ) -> None:
        self._embeddings, self._head = [], head
        for group in groups:
            shared = SharedColumns(group.columns, group.caches, group_size, spec)
            cells = make_cells(network, group.caches, shared, spec)
            self._embeddings.append(_Embedding(network, group.caches, shared, cells, spec))
        caches, _ = join_groups(groups)
        self._icl = [_IclBlock(block, [c.kv[i] for c in caches], spec) for i, block in enumerate(network.icl_blocks)]
        self._norm = spec.norm(network.output_norm)

    @torch.inference_mode()
    def __call__(self, *rows: torch.Tensor) -> torch.Tensor:
        """float32 [members, R, width] of each group to logits [B, R, outputs] of all their members."""
        embedded = [embed(part) for embed, part in zip(self._embeddings, rows, strict=True)]
        x = embedded[0] if len(embedded) == 1 else torch.cat(embedded)
        for block in self._icl:
            x = block(x)
        x = self._norm(x)
        for part in self._head:
            x = part(x)
        return torch.nan_to_num(x, nan=0.0)


class _Embedding:
    """Stages 0 to 2 of a group.

    Args:
        cells: float32 [columns, R], of each kind one, to float32 [cells, R, E], of each kind one.
    """

    def __init__(
        self,
        network: Any,
        caches: Sequence[Any],
        shared: SharedColumns,
        cells: Callable[[torch.Tensor], torch.Tensor],
        spec: ComputeSpec,
    ) -> None:
        num_members, num_columns = shared.kinds.shape
        layers = network.feature_distribution_embedder.layers
        self._columns, self._cells = shared.columns, cells
        hidden = zip(*(cache.inducing_hidden for cache in caches), strict=True)
        self._column_blocks = [
            _ColumnBlock(layer.cross_attn_block2, torch.cat([spec.exact(x) for x in parts])[shared.cells], spec)
            for layer, parts in zip(layers, hidden, strict=True)
        ]
        self._readout = _Readout(network.column_aggregator, shared.kinds, spec)
        max_tokens = _MAX_TOKENS_CPU if spec.device.type == "cpu" else _MAX_TOKENS
        num_tokens = num_members * (self._readout.num_queries + num_columns)
        self._max_rows = max(1, max_tokens // num_tokens)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [B, R, C] to [B, R, T E] (`_stages_0_to_2`)."""
        num_parts = math.ceil(rows.shape[1] / self._max_rows)
        parts = [self._embed(part) for part in torch.chunk(rows.float(), num_parts, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _embed(self, rows: torch.Tensor) -> torch.Tensor:
        x = self._cells(rows.transpose(1, 2).flatten(0, 1).index_select(0, self._columns))
        for block in self._column_blocks:
            x = block(x)
        return self._readout(x)


class _Cells:
    """Stage 0: values to embedded cells (`_preprocess_raw`, `_group_features`, `x_embed`)."""

    def __init__(self, network: Any, caches: Sequence[Any], shared: SharedColumns, spec: ComputeSpec) -> None:
        self._scaling = Scaling(caches, shared.columns, spec)
        context = spec.stack(caches, lambda cache: cache.ecdf_context, dim=1).flatten(1, 2)[:, shared.columns]
        num_columns, num_edges = context.shape[1:]
        self._edges = context[0].contiguous()
        self._num_rows = context[2, :, -1:]
        # One row per edge: its value, context values below it, context values at most it.
        self._table = context.permute(1, 2, 0).reshape(-1, 3).contiguous()
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

        Clamping the value to the outer edges gives the midrank of the nearest extreme, as the library's own clamp of
        the counts does, and leaves one search: a value is an edge if the first edge not below it equals it.
        """
        clamped = values.clamp(self._edges[:, :1], self._edges[:, -1:])
        upper = torch.searchsorted(self._edges, clamped).clamp(max=self._edges.shape[1] - 1) + self._starts
        high, high_below, high_at_most = self._read_edges(upper)
        # At a column's first edge this reads another column's last, but there the value is an edge.
        low, _, low_at_most = self._read_edges((upper - 1).clamp(min=0))
        between = low_at_most + (clamped - low) / (high - low) * (high_below - low_at_most)
        counts = torch.where(clamped == high, 0.5 * (high_below + high_at_most), between)
        return counts / self._num_rows

    def _read_edges(self, edges: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._table.index_select(0, edges.flatten()).view(*edges.shape, 3).unbind(-1)


def _by_neighbour(embed: Any, spec: ComputeSpec) -> torch.Tensor:
    """The metadata weights, in columns ordered by neighbour, then value, indicator, sines, cosines of its rank."""
    weight = spec.exact(embed.metadata_linear.weight)
    group = embed.group_size
    values, indicators, ranks = weight[:, :group], weight[:, group : 2 * group], weight[:, 2 * group :]
    parts = [values[..., None], indicators[..., None], torch.unflatten(ranks, 1, (group, -1))]
    return torch.cat(parts, dim=-1).flatten(1)


class _ColumnBlock:
    """Stage 1: each cell attends to its column's inducing points (`CrossAttentionBlock`)."""

    def __init__(self, block: Any, hidden: torch.Tensor, spec: ComputeSpec) -> None:
        attention = block.attn
        heads = (attention.num_heads, attention.head_dim)
        context = spec.norm(block.layernorm_kv)(hidden)
        keys = spec.exact_linear(attention.k_projection, heads)(context)
        values = spec.exact_linear(attention.v_projection, heads)(context)
        norm, query_bound = getattr(attention, "q_norm", None), None
        if norm is not None:
            keys = spec.norm(attention.k_norm)(keys) * spec.gain(norm)
            query_bound = torch.full((heads[0], 1, heads[1]), math.sqrt(heads[1]), device=spec.device)
        short = ComputeSpec(spec.device, spec.dtype, spec.short_dtype)
        self._query_norm = spec.head_norm(norm)
        self._attend = short.attend_to(keys * attention.head_dim**-0.5, values, query_bound)
        self._norm = Norm(None, block.layernorm_q.eps)
        self._query = spec.linear(attention.q_projection, heads, block.layernorm_q)
        self._out = spec.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm2, block.mlp, spec)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [cells, R, E] to the same, in place."""
        queries = self._query_norm(self._query(self._norm(x)))
        attended = self._attend(queries.transpose(1, 2)).transpose(1, 2).flatten(-2)
        return self._feed_forward(self._out.add_to(x, attended))


class _Readout:
    """Stage 2: readout tokens and cells of a row attend to each other; the tokens are the row (`ColumnAggregator`).

    Tokens stand first among the axes here: what is done by position is then a batched product over contiguous rows.
    """

    def __init__(self, aggregator: Any, kinds: torch.Tensor, spec: ComputeSpec) -> None:
        """`kinds` of cells, int64 [B, C]."""
        self.num_queries = aggregator.num_cls_tokens
        self._shape = (self.num_queries + kinds.shape[1], kinds.shape[0])
        self._kinds = kinds.T.flatten()
        num_tokens = self._shape[0]
        # Without a rotation every angle is zero.
        width = aggregator.blocks[0].attention.head_dim // 2
        frequencies = torch.zeros(width) if aggregator.rope is None else aggregator.rope.freqs
        angles = torch.arange(num_tokens, device=spec.device).float()[:, None] * spec.exact(frequencies)
        *inner, last = aggregator.blocks
        self._blocks = [_RowBlock(block, angles, num_tokens, spec) for block in inner]
        self._blocks.append(_RowBlock(last, angles, self.num_queries, spec))
        self._tokens = spec.exact(aggregator.cls_tokens)[:, None, None]
        self._norm = spec.norm(aggregator.out_ln)

    def __call__(self, cells: torch.Tensor) -> torch.Tensor:
        """float32 [cells, R, E], of each kind one, to [B, R, T E]."""
        x = cells.new_empty(*self._shape, *cells.shape[1:])
        x[: self.num_queries] = self._tokens
        torch.index_select(cells, 0, self._kinds, out=x[self.num_queries :].flatten(0, 1))
        x = x.flatten(1, 2)
        for block in self._blocks:
            x = block(x)
        return self._norm(x.transpose(0, 1).contiguous()).view(self._shape[1], cells.shape[1], -1)


class _RowBlock:
    """`TransformerBlock`, for the first `num_queries` tokens of a row: all, or the readout's (`forward_cross`)."""

    def __init__(self, block: Any, angles: torch.Tensor, num_queries: int, spec: ComputeSpec) -> None:
        attention = block.attention
        self._num_queries, self._heads = num_queries, (attention.num_heads, attention.head_dim)
        self._norm = Norm(None, block.layernorm.eps)
        query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        gain = torch.full((attention.head_dim,), attention.head_dim**-0.5, device=spec.device)
        for norm in (query_norm, key_norm):
            gain = gain if norm is None else gain * spec.gain(norm)
        layout = (self._heads, spec, block.layernorm)
        self._query = RotaryProjection(attention.q_projection, query_norm, angles[:num_queries], *layout, gain)
        self._key = RotaryProjection(attention.k_projection, key_norm, angles, *layout)
        self._is_bounded = self._query.max_length * self._key.max_length <= MAX_EXP_SCORE
        self._value = spec.linear(attention.v_projection, self._heads, block.layernorm)
        self._out = spec.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm_mlp, block.mlp, spec)
        self._spec = spec

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [T, B R, E] to [queries, B R, E], in place."""
        normed = self._norm(x).to(self._value.dtype)  # once for all three, whose weights are of one shape
        queries, keys, values = self._query(normed[: self._num_queries]), self._key(normed), self._value(normed)
        dtype = self._spec.short_dtype
        if self._spec.device.type == "cpu":
            attended = attend_tokens(queries, keys, values, is_bounded=self._is_bounded, dtype=dtype)
        else:
            queries, keys, values = (part.to(dtype).permute(1, 2, 0, 3) for part in (queries, keys, values))
            attended = attend(queries, keys, values).permute(2, 0, 1, 3)
        return self._feed_forward(self._out.add_to(x[: self._num_queries], attended.flatten(-2)))


class _IclBlock:
    """Stage 3: test rows attend to the context rows' cached keys and values (`ICLTransformerBlock`)."""

    def __init__(self, block: Any, entries: Sequence[Any], spec: ComputeSpec) -> None:
        attention = block.icl_attention
        dense = [e.dequantize(torch.float32) if isinstance(e, QuantizedKVCacheEntry) else e for e in entries]
        keys, values = (torch.cat([spec.exact(getattr(e, name)) for e in dense]) for name in ("key", "value"))
        # A softmax does not see what all scores share, and centred keys keep more digits in a narrow dtype.
        keys = keys - keys.mean(1, keepdim=True)
        heads = (attention.num_heads, attention.head_dim)
        self._fold = (keys.shape[2], attention.num_heads // keys.shape[2])
        self._norm = Norm(None, block.layernorm.eps)
        self._query = spec.linear(attention.q_projection, heads, block.layernorm)
        norm = getattr(attention, "q_norm", None)
        self._query_norm, gain = spec.head_norm(norm), None if norm is None else spec.gain(norm)
        self._scale = LengthScale(attention.softmax_scaling_layer, *heads, keys.shape[1], spec, gain)
        query_bound = None if norm is None else torch.unflatten(self._scale.query_bound, 0, self._fold)
        self._attend = spec.attend_to(keys, values, query_bound)
        self._out = spec.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm_mlp, block.mlp, spec)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, R, T E] to the same, in place."""
        queries = self._scale(self._query_norm(self._query(self._norm(x))))
        # Query heads of one key/value head stand next to each other, and become rows.
        folded = torch.unflatten(queries, 2, self._fold).transpose(1, 2).flatten(2, 3)
        unfolded = torch.unflatten(self._attend(folded), 2, (-1, self._fold[1])).transpose(1, 2).flatten(2)
        return self._feed_forward(self._out.add_to(x, unfolded))
