"""The stages that v3 and v3.5 share, for test rows alone and given a KV cache: columns, rows, attention to the context.

What is always true:
- a row meets the cache and the weights, never another row. Every operation works cell by cell, row by row, or as
  attention of one row's queries to cached keys;
- everything that depends on cache and weights alone is computed once, when the forward pass is built: the columns' keys
  and values (tabpfn projects and norms the cached inducing states in every call), rotary tables, attention scales of
  log(context rows), one-hot labels, packed weights;
- query heads that share a key/value head become further rows of one product, so no key is copied per head;
- shapes and chunks follow from the shapes of the input, so no call waits for the device.

`dtype` is the format of the weights, `kv_dtype` that of the cached keys and values. The residual stream, norms, ranks,
Fourier features, softmax, attention scales and the last projection stay in float32, where tabpfn keeps some of them in
bfloat16. On a CPU narrow layers and attention to few keys stay in float32 too.

Axes: B members, R rows, C columns, E width of a cell, T tokens of a row, H heads, D width of a head, N context rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tabpfn.architectures.kv_cache import QuantizedKVCacheEntry

from serve.engine.forward import Group
from serve.engine.forward.attention import MAX_EXP_SCORE, attend_tokens
from serve.engine.forward.layers import ComputeSpec, FeedForward, LengthScale, Norm, attend
from serve.engine.forward.rotary import QueriesAndKeys, RotaryProjection
from serve.engine.forward.v3_cells import SharedColumns

MAX_TOKENS, _MAX_TOKENS_CPU = 1 << 18, 1 << 14
"""Most cells and readout tokens in the column stages at a time. It bounds memory, and on a CPU keeps the activations
near its cache."""


def join_groups(groups: Sequence[Group]) -> tuple[list[Any], torch.Tensor]:
    """The caches of all groups, and their targets [members, context rows], in the order of the groups."""
    return [cache for group in groups for cache in group.caches], torch.cat([group.targets for group in groups])


class StagedForward:
    """The forward pass of v3.5 and v3, which differ in how cells are embedded and in `head`, behind the last norm.

    After stage 2 a row's width no longer depends on the width of its table. So the members of all groups join there:
    attention to the context and everything behind it is one pass, which reads its weights once.

    Args:
        group_size: columns in a cell.
        make_cells: makes stage 0 from network, caches, the shared columns and the spec. Stage 0 takes float32
            [columns, R], one column of each kind, to float32 [cells, R, E], one cell of each kind.
        head: functions applied in order; together they take float32 [B, R, T E] to logits.
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
        """float32 [members, R, width] of each group to logits float32 [B, R, outputs] of the members of all groups."""
        embedded = [embed(part) for embed, part in zip(self._embeddings, rows, strict=True)]
        x = embedded[0] if len(embedded) == 1 else torch.cat(embedded)
        for block in self._icl:
            x = block(x)
        x = self._norm(x)
        for part in self._head:
            x = part(x)
        return torch.nan_to_num(x, nan=0.0)


class _Embedding:
    """Stages 0 to 2 of one group (tabpfn's `_stages_0_to_2`).

    Args:
        cells: stage 0, as `StagedForward` describes it.
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
        max_tokens = _MAX_TOKENS_CPU if spec.device.type == "cpu" else MAX_TOKENS
        num_tokens = num_members * (self._readout.num_queries + num_columns)
        self._max_rows = max(1, max_tokens // num_tokens)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [B, R, C] to float32 [B, R, T E]."""
        num_parts = math.ceil(rows.shape[1] / self._max_rows)
        parts = [self._embed(part) for part in torch.chunk(rows.float(), num_parts, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _embed(self, rows: torch.Tensor) -> torch.Tensor:
        x = self._cells(rows.transpose(1, 2).flatten(0, 1).index_select(0, self._columns))
        for block in self._column_blocks:
            x = block(x)
        return self._readout(x)


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
        self._query_norm = spec.head_norm(norm, is_last=True)
        self._attend = short.attend_to(keys * attention.head_dim**-0.5, values, query_bound)
        self._norm = Norm(None, block.layernorm_q.eps)
        self._query = spec.linear(attention.q_projection, heads, block.layernorm_q)
        self._out = spec.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm2, block.mlp, spec)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [cells, R, E] to the same shape, in place."""
        queries = self._query_norm(self._query(self._norm(x)))
        attended = self._attend(queries.transpose(1, 2)).transpose(1, 2).flatten(-2)
        return self._feed_forward(self._out.add_to(x, attended))


class _Readout:
    """Stage 2: readout tokens and cells of a row attend to each other; the tokens then stand for the row
    (`ColumnAggregator`).

    The token axis comes first here, so that work done by position is a batched product over contiguous rows.
    """

    def __init__(self, aggregator: Any, kinds: torch.Tensor, spec: ComputeSpec) -> None:
        """`kinds`: the kind of each cell, int64 [B, C]."""
        self.num_queries = aggregator.num_cls_tokens
        self._shape = (self.num_queries + kinds.shape[1], kinds.shape[0])
        self._kinds = kinds.T.flatten()
        num_tokens = self._shape[0]
        # A network without rotary embedding has zero angles.
        width = aggregator.blocks[0].attention.head_dim // 2
        frequencies = torch.zeros(width) if aggregator.rope is None else aggregator.rope.freqs
        angles = torch.arange(num_tokens, device=spec.device).float()[:, None] * spec.exact(frequencies)
        *inner, last = aggregator.blocks
        self._blocks = [_RowBlock(block, angles, num_tokens, spec) for block in inner]
        self._blocks.append(_RowBlock(last, angles, self.num_queries, spec))
        self._tokens = spec.exact(aggregator.cls_tokens)[:, None, None]
        self._norm = spec.norm(aggregator.out_ln)

    def __call__(self, cells: torch.Tensor) -> torch.Tensor:
        """float32 [cells, R, E], one cell of each kind, to [B, R, T E]."""
        x = cells.new_empty(*self._shape, *cells.shape[1:])
        x[: self.num_queries] = self._tokens
        torch.index_select(cells, 0, self._kinds, out=x[self.num_queries :].flatten(0, 1))
        x = x.flatten(1, 2)
        for block in self._blocks:
            x = block(x)
        return self._norm(x.transpose(0, 1).contiguous()).view(self._shape[1], cells.shape[1], -1)


class _RowBlock:
    """`TransformerBlock` for the first `num_queries` tokens of a row: all, or the readout tokens (`forward_cross`)."""

    def __init__(self, block: Any, angles: torch.Tensor, num_queries: int, spec: ComputeSpec) -> None:
        attention = block.attention
        self._num_queries, self._heads = num_queries, (attention.num_heads, attention.head_dim)
        self._norm = Norm(None, block.layernorm.eps)
        query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        gain = torch.full((attention.head_dim,), attention.head_dim**-0.5, device=spec.device)
        for norm in (query_norm, key_norm):
            gain = gain if norm is None else gain * spec.gain(norm)
        layout = (self._heads, spec, block.layernorm)
        # a GPU computes every token's query in the kernels of the keys
        asking = angles[:num_queries] if spec.device.type == "cpu" else angles
        query = RotaryProjection(attention.q_projection, query_norm, asking, *layout, gain)
        key = RotaryProjection(attention.k_projection, key_norm, angles, *layout)
        self._queries_and_keys = QueriesAndKeys(query, key, num_queries, spec.short_dtype)
        self._is_bounded = self._queries_and_keys.max_score <= MAX_EXP_SCORE
        self._value = spec.linear(attention.v_projection, self._heads, block.layernorm)
        self._out = spec.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm_mlp, block.mlp, spec)
        self._spec = spec

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [T, B R, E] to [queries, B R, E], in place."""
        normed = self._norm(x).to(self._value.dtype)  # converted once: the three weights have one shape, so one dtype
        queries, keys = self._queries_and_keys(normed)
        values, dtype = self._value(normed), self._spec.short_dtype
        if self._spec.device.type == "cpu":
            attended = attend_tokens(queries, keys, values, is_bounded=self._is_bounded, dtype=dtype)
        else:
            parts = (part.to(dtype).permute(1, 2, 0, 3) for part in (queries, keys, values))
            attended = attend(*parts).permute(2, 0, 1, 3)
        return self._feed_forward(self._out.add_to(x[: self._num_queries], attended.flatten(-2)))


class _IclBlock:
    """Stage 3: test rows attend to the context rows' cached keys and values (`ICLTransformerBlock`)."""

    def __init__(self, block: Any, entries: Sequence[Any], spec: ComputeSpec) -> None:
        attention = block.icl_attention
        dense = [e.dequantize(torch.float32) if isinstance(e, QuantizedKVCacheEntry) else e for e in entries]
        keys, values = (torch.cat([spec.exact(getattr(e, name)) for e in dense]) for name in ("key", "value"))
        # A softmax ignores a constant that all scores share, and centred keys keep more digits in a narrow dtype.
        keys = keys - keys.mean(1, keepdim=True)
        heads = (attention.num_heads, attention.head_dim)
        self._fold = (keys.shape[2], attention.num_heads // keys.shape[2])
        self._norm = Norm(None, block.layernorm.eps)
        self._query = spec.linear(attention.q_projection, heads, block.layernorm)
        norm = getattr(attention, "q_norm", None)
        self._query_norm, gain = spec.head_norm(norm), None if norm is None else spec.gain(norm)
        self._scale = LengthScale(
            attention.softmax_scaling_layer, *heads, keys.shape[1], spec, gain, spec.attention_dtype
        )
        query_bound = None if norm is None else torch.unflatten(self._scale.query_bound, 0, self._fold)
        self._attend = spec.attend_to(keys, values, query_bound)
        self._out = spec.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm_mlp, block.mlp, spec)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, R, T E] to the same shape, in place."""
        queries = self._scale(self._query_norm(self._query.exact(self._norm(x))))
        # Query heads that share a key/value head lie next to each other; they become rows.
        folded = torch.unflatten(queries, 2, self._fold).transpose(1, 2).flatten(2, 3)
        unfolded = torch.unflatten(self._attend(folded), 2, (-1, self._fold[1])).transpose(1, 2).flatten(2)
        return self._feed_forward(self._out.add_to(x, unfolded))
