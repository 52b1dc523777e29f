"""The test-only forward of tabpfn_v3_5: what `TabPFNV3p5.forward` computes given a KV cache and test rows alone.

What is always true:
- a row meets the cache and the weights, never another row: every operation below works cell by cell, row by row, or as
  an attention of one row's queries to cached keys;
- whatever depends on cache and weights alone is made once, in `build`: the columns' keys and values (the library
  projects and norms the cached inducing states in every call), rotary tables, attention scales of log(context rows),
  one-hot labels, packed weights;
- query heads that share a key/value head stand as further rows of one product, so no key is copied per head;
- shapes and chunks follow from the shapes of the input, so no call waits for the device.

`dtype` holds for weights, keys and values. The residual stream, norms, ranks, Fourier features, softmax, attention
scales and the last projection stay in float32, where the library keeps some of them in bfloat16.

Axes: B members, R rows, C columns, E width of a cell, T tokens of a row, H heads, D width of a head, N context rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tabpfn.architectures.kv_cache import QuantizedKVCacheEntry

from serve.engine.forward import Forward
from serve.engine.forward.layers import FeedForward, LengthScale, Place, Rotation, attend

_MAX_TOKENS, _MAX_TOKENS_CPU = 1 << 18, 1 << 14
"""Cells (and readout tokens) that pass the column stages at once: bounds memory; on a CPU keeps them near the cache."""
_MAX_SCORES = 1 << 21
"""Attention scores of the decoder at once; the other attentions never hold theirs."""


def build(
    network: torch.nn.Module, caches: Sequence[Any], targets: torch.Tensor, task_type: str, dtype: torch.dtype
) -> Forward:
    """The forward of one cache group, on the network's device; see `serve.engine.forward.Builder`.

    Keeps no reference to `caches`, which may be dropped. Raises ValueError on a task or label the network lacks.
    """
    if task_type not in ("multiclass", "regression"):
        raise ValueError(f"task type {task_type!r} is neither 'multiclass' nor 'regression'")
    with torch.inference_mode():
        return _Forward(network, caches, targets, task_type, dtype)


class _Forward:
    def __init__(
        self, network: Any, caches: Sequence[Any], targets: torch.Tensor, task_type: str, dtype: torch.dtype
    ) -> None:
        place = Place(network.output_norm.weight.device, dtype)
        mean = place.stack(caches, lambda cache: cache.scaler_cache["mean"])
        num_members, num_columns = mean.shape
        layers = network.feature_distribution_embedder.layers
        self._cells = _Cells(network, caches, mean, place)
        hidden = zip(*(cache.inducing_hidden for cache in caches), strict=True)
        self._columns = [
            _ColumnBlock(layer.cross_attn_block2, torch.cat([place.exact(x) for x in parts]), place)
            for layer, parts in zip(layers, hidden, strict=True)
        ]
        self._readout = _Readout(network.column_aggregator, num_columns, place)
        self._icl = [_IclBlock(block, [c.kv[i] for c in caches], place) for i, block in enumerate(network.icl_blocks)]
        self._norm = place.norm(network.output_norm)
        voting, heads = task_type == "multiclass", network.heads
        self._head = _Votes(heads, caches, targets, place) if voting else _Bars(heads, place)
        max_tokens = _MAX_TOKENS_CPU if place.device.type == "cpu" else _MAX_TOKENS
        num_tokens = num_members * (self._readout.num_queries + num_columns)
        self._max_rows = max(1, max_tokens // num_tokens)

    @torch.inference_mode()
    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        parts = [self._embed(part) for part in torch.split(rows.float(), self._max_rows, dim=1)]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        for block in self._icl:
            x = block(x)
        return torch.nan_to_num(self._head(self._norm(x)), nan=0.0)

    def _embed(self, rows: torch.Tensor) -> torch.Tensor:
        """Stages 0-2: rows [B, R, C] to [B, R, T E] (`_stages_0_to_2`)."""
        x = self._cells(rows.transpose(1, 2).contiguous())
        num_members, num_columns = x.shape[:2]
        x = x.flatten(0, 1)
        for block in self._columns:
            x = block(x)
        return self._readout(x.view(num_members, num_columns, *x.shape[1:]))


class _Cells:
    """Stage 0: values to embedded cells (`_preprocess_raw`, `_group_features`, `x_embed`)."""

    def __init__(self, network: Any, caches: Sequence[Any], mean: torch.Tensor, place: Place) -> None:
        self._mean = mean[..., None]
        # The epsilon is that of the dtype which the statistics were stored in.
        std = place.stack(caches, lambda c: c.scaler_cache["std"] + torch.finfo(c.scaler_cache["std"].dtype).eps)
        self._std = std[..., None]
        context = place.stack(caches, lambda cache: cache.ecdf_context, dim=1)
        num_members, num_columns, num_edges = context.shape[1:]
        self._edges = context[0].flatten(0, 1).contiguous()
        self._num_rows = context[2, ..., -1:]
        # One row per edge: its value, context values below it, context values at most it.
        self._table = context.permute(1, 2, 3, 0).reshape(-1, 3).contiguous()
        self._starts = torch.arange(num_members * num_columns, device=place.device)[:, None] * num_edges

        embed = network.x_embed
        group, frequencies = embed.group_size, embed.ecdf_num_frequencies
        columns = torch.arange(num_columns, device=place.device)
        self._neighbours = torch.stack([(columns + 2**i) % num_columns for i in range(group)], dim=1).flatten()
        self._phases = math.pi * torch.arange(1, frequencies + 1, device=place.device, dtype=torch.float32)
        self._frequencies = place.exact(embed.fourier.frequencies)
        self._weight = torch.cat([place.exact(embed.fourier.in_linear.weight), _by_neighbour(embed, place)], dim=1)
        norm = embed.layernorm
        self._norm = (norm.normalized_shape, place.exact(norm.weight), place.exact(norm.bias), norm.eps)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, R] to float32 [B, C, R, E]."""
        num_columns = values.shape[1]
        finite = torch.isfinite(values)
        indicators = torch.where(finite, 0.0, torch.nan_to_num(values, nan=-2.0, posinf=2.0, neginf=4.0))
        values = torch.where(finite, values, self._mean)
        scaled = ((values - self._mean) / self._std).clamp(-100, 100)
        phases = self._rank(values).unsqueeze(-1) * self._phases
        features = torch.cat([scaled[..., None], indicators[..., None], phases.sin(), phases.cos()], dim=-1)
        grouped = torch.unflatten(features.index_select(1, self._neighbours), 1, (num_columns, -1)).transpose(2, 3)
        waves = grouped[..., :1] * self._frequencies
        summed = torch.cat([waves.sin().sum(-2), waves.cos().sum(-2), grouped.flatten(-2)], dim=-1)
        return F.layer_norm(F.linear(summed, self._weight), *self._norm)

    def _rank(self, values: torch.Tensor) -> torch.Tensor:
        """Midrank of each value among the context's, 0 to 1 (`_in_context_ecdf`).

        Clamping the value to the outer edges gives the midrank of the nearest extreme, as the library's own clamp of
        the counts does, and leaves one search: a value is an edge if the first edge not below it equals it.
        """
        clamped = values.flatten(0, 1).clamp(self._edges[:, :1], self._edges[:, -1:])
        upper = torch.searchsorted(self._edges, clamped).clamp(max=self._edges.shape[1] - 1) + self._starts
        high, high_below, high_at_most = self._read_edges(upper)
        # At a column's first edge this reads another column's last, but there the value is an edge.
        low, _, low_at_most = self._read_edges((upper - 1).clamp(min=0))
        between = low_at_most + (clamped - low) / (high - low) * (high_below - low_at_most)
        counts = torch.where(clamped == high, 0.5 * (high_below + high_at_most), between)
        return counts.view_as(values) / self._num_rows

    def _read_edges(self, edges: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._table.index_select(0, edges.flatten()).view(*edges.shape, 3).unbind(-1)


def _by_neighbour(embed: Any, place: Place) -> torch.Tensor:
    """The metadata weights, in columns ordered by neighbour, then value, indicator, sines, cosines of its rank."""
    weight = place.exact(embed.metadata_linear.weight)
    group = embed.group_size
    values, indicators, ranks = weight[:, :group], weight[:, group : 2 * group], weight[:, 2 * group :]
    parts = [values[..., None], indicators[..., None], torch.unflatten(ranks, 1, (group, -1))]
    return torch.cat(parts, dim=-1).flatten(1)


class _ColumnBlock:
    """Stage 1: each cell attends to its column's inducing points (`CrossAttentionBlock`)."""

    def __init__(self, block: Any, hidden: torch.Tensor, place: Place) -> None:
        attention = block.attn
        heads = (attention.num_heads, attention.head_dim)
        context = place.norm(block.layernorm_kv)(hidden)
        keys = place.exact_linear(attention.k_projection, heads)(context)
        self._keys = place.by_head(place.norm(attention.k_norm)(keys))
        self._values = place.by_head(place.exact_linear(attention.v_projection, heads)(context))
        self._norm, self._query = place.norm(block.layernorm_q), place.linear(attention.q_projection, heads)
        self._query_norm = place.norm(attention.q_norm, attention.head_dim**-0.5)
        self._out = place.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm2, block.mlp, place)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B C, R, E] to the same."""
        queries = self._query_norm(self._query(self._norm(x))).transpose(1, 2)
        attended = attend(queries, self._keys, self._values).transpose(1, 2).flatten(-2)
        return self._feed_forward(x + self._out(attended))


class _Readout:
    """Stage 2: readout tokens and cells of a row attend to each other; the tokens are the row (`ColumnAggregator`)."""

    def __init__(self, aggregator: Any, num_columns: int, place: Place) -> None:
        self.num_queries = aggregator.num_cls_tokens
        num_tokens = self.num_queries + num_columns
        angles = torch.arange(num_tokens, device=place.device).float()[:, None] * place.exact(aggregator.rope.freqs)
        *inner, last = aggregator.blocks
        self._blocks = [_RowBlock(block, angles, num_tokens, place) for block in inner]
        self._blocks.append(_RowBlock(last, angles, self.num_queries, place))
        self._tokens = place.exact(aggregator.cls_tokens)
        self._norm = place.norm(aggregator.out_ln)

    def __call__(self, cells: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, R, E] to [B, R, T E]."""
        num_members, _, num_rows, _ = cells.shape
        tokens = torch.cat([self._tokens.expand(num_members, num_rows, -1, -1), cells.transpose(1, 2)], dim=2)
        x = tokens.flatten(0, 1)
        for block in self._blocks:
            x = block(x)
        return self._norm(x).view(num_members, num_rows, -1)


class _RowBlock:
    """`TransformerBlock`, for the first `num_queries` tokens of a row: all, or the readout's (`forward_cross`)."""

    def __init__(self, block: Any, angles: torch.Tensor, num_queries: int, place: Place) -> None:
        attention = block.attention
        self._num_queries, heads = num_queries, (attention.num_heads, attention.head_dim)
        self._norm, self._query = place.norm(block.layernorm), place.linear(attention.q_projection, heads)
        self._key = place.linear(attention.k_projection, heads)
        self._value = place.linear(attention.v_projection, heads)
        self._turn_queries = Rotation(attention.q_norm, angles[:num_queries], attention.head_dim**-0.5, place)
        self._turn_keys = Rotation(attention.k_norm, angles, 1.0, place)
        self._out = place.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm_mlp, block.mlp, place)
        self._dtype = place.attention_dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B R, T, E] to [B R, queries, E]."""
        normed, kept = self._norm(x), slice(self._num_queries)
        queries = self._turn_queries(self._query(normed[:, kept])).transpose(1, 2)
        keys = self._turn_keys(self._key(normed)).transpose(1, 2)
        values = self._value(normed).transpose(1, 2)
        attended = attend(queries, keys.to(self._dtype), values.to(self._dtype)).transpose(1, 2).flatten(-2)
        return self._feed_forward(x[:, kept] + self._out(attended))


class _IclBlock:
    """Stage 3: test rows attend to the context rows' cached keys and values (`ICLTransformerBlock`)."""

    def __init__(self, block: Any, entries: Sequence[Any], place: Place) -> None:
        attention = block.icl_attention
        dense = [e.dequantize(torch.float32) if isinstance(e, QuantizedKVCacheEntry) else e for e in entries]
        keys, values = (torch.cat([place.exact(getattr(e, name)) for e in dense]) for name in ("key", "value"))
        # A softmax does not see what all scores share, and centred keys keep more digits in a narrow dtype.
        self._keys, self._values = place.by_head(keys - keys.mean(1, keepdim=True)), place.by_head(values)
        heads = (attention.num_heads, attention.head_dim)
        self._fold = (keys.shape[2], attention.num_heads // keys.shape[2])
        self._norm, self._query = place.norm(block.layernorm), place.linear(attention.q_projection, heads)
        self._query_norm = place.norm(attention.q_norm)
        self._scale = LengthScale(attention.softmax_scaling_layer, *heads, keys.shape[1], place)
        self._out = place.linear(attention.out_projection)
        self._feed_forward = FeedForward(block.layernorm_mlp, block.mlp, place)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, R, T E] to the same."""
        queries = self._scale(self._query_norm(self._query(self._norm(x))))
        # Query heads of one key/value head stand next to each other, and become rows.
        folded = torch.unflatten(queries, 2, self._fold).transpose(1, 2).flatten(2, 3)
        attended = attend(folded, self._keys, self._values)
        unfolded = torch.unflatten(attended, 2, (-1, self._fold[1])).transpose(1, 2).flatten(2)
        return self._feed_forward(x + self._out(unfolded))


class _Votes:
    """Classes by attention of test rows to the context's labels (`ManyClassDecoder`), in float32."""

    def __init__(self, modules: Any, caches: Sequence[Any], targets: torch.Tensor, place: Place) -> None:
        decoder = modules.many_class_decoder
        if any(cache.decoder_keys is None for cache in caches):
            raise ValueError("the cache of a regressor answers no classes: it has no decoder keys")
        keys = place.stack(caches, lambda cache: cache.decoder_keys)
        self._keys = keys.permute(0, 2, 3, 1).contiguous()
        labels = place.exact(targets)
        # A label that is no number takes part in the softmax, and votes for no class.
        classes = torch.where(labels.isfinite(), labels, -1).long()
        num_classes = max(1, int(classes.max()) + 1)
        self._num_absent = decoder.max_num_classes - num_classes
        if self._num_absent < 0:
            raise ValueError(f"label {num_classes - 1}, but the network knows {decoder.max_num_classes} classes")
        self._votes = (classes[..., None] == torch.arange(num_classes, device=place.device)).float() / decoder.num_heads
        self._feed_forward = FeedForward(modules.mlp_classification.norm, modules.mlp_classification.mlp, place)
        heads = (decoder.num_heads, decoder.head_dim)
        self._query = place.exact_linear(decoder.q_projection, heads)
        self._scale = LengthScale(decoder.softmax_scaling_layer, *heads, keys.shape[1], place)
        self._max_rows = max(1, _MAX_SCORES // (keys.shape[0] * decoder.num_heads * keys.shape[1]))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, R, T E] to logits [B, R, max_num_classes]."""
        queries = self._scale(self._query(self._feed_forward(x))).transpose(1, 2)
        shares = torch.cat([self._count(part) for part in torch.split(queries, self._max_rows, dim=2)], dim=1)
        # The library's floor of a share, and of a class without context rows.
        return torch.log(F.pad(shares, (0, self._num_absent)).clamp(min=1e-5) + 3e-5)

    def _count(self, queries: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(torch.matmul(queries, self._keys), dim=-1)
        return torch.bmm(weights.flatten(1, 2), self._votes).view(*queries.shape[:3], -1).sum(1)


class _Bars:
    """Logits of the regressor's bars (`MultiTaskHeads`)."""

    def __init__(self, heads: Any, place: Place) -> None:
        self._feed_forward = FeedForward(heads.mlp_regression.norm, heads.mlp_regression.mlp, place)
        self._out = place.exact_linear(heads.output_projection)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._out(self._feed_forward(x))
