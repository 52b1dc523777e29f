"""Test rows through tabpfn_v2 from its KV cache: every member of a cache group in one pass.

What is always true:
- `TabPFNV2.forward(x, kv_cache=..., x_is_test_only=True)` is the reference (tabpfn/architectures/tabpfn_v2.py). It
  runs one member at a time; the members share the weights, so here they are one more batch axis;
- whatever depends on cache and weights alone is computed in `build`: which column goes where, the scaling, the columns'
  random embeddings (drawn on the device that serves, as the library draws them), the target column, fused weights;
- keys and values have a single head, so all query heads of all rows of a column form one matrix [rows * heads,
  head_dim]: a column's context is read once per call, not once per head. The softmax scale is folded into the keys;
- keys are centred over the context: a constant added to every score of a query leaves its softmax as it is, and a score
  near zero keeps more digits in low precision. Values are centred likewise, their mean returns behind the projection;
- the residual stream, norms, embeddings and the output head are float32; `dtype` is that of the products in between;
- the answer is read off the target column, so the last layer is computed for that column only;
- rows meet nowhere: what would be large is cut along rows or columns by shapes alone, never by values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from serve.engine.forward.layers import MAX_CUDA_GRID

# Scores held at a time on the CPU: few enough to be softmaxed and spent in a core's cache, enough to feed two cores.
_TILE_BYTES = 4 * 2**20
# The widest activation (the MLP's hidden layer) of one pass; more rows go in several passes.
_MAX_HIDDEN_BYTES = 256 * 2**20


def build(
    network: torch.nn.Module, caches: Sequence[Any], targets: torch.Tensor, task_type: str, dtype: torch.dtype
) -> TabPFNV2Forward:
    """See serve.engine.forward.Builder. `caches` are TabPFNV2Cache of equal width and context; both tasks run alike."""
    del targets, task_type  # the cache holds the target column's embedding
    with torch.inference_mode():
        return TabPFNV2Forward(network, caches, dtype)


class TabPFNV2Forward:
    """A Forward: float32 [members, rows, width] to float32 [members, rows, outputs]."""

    def __init__(self, network: Any, caches: Sequence[Any], dtype: torch.dtype) -> None:
        self._num_members: int = sum(cache.train_shape[0] for cache in caches)
        self._cells = _read_cells(network, caches, self._num_members)
        self._layers = []
        for index, block in enumerate(network.blocks):
            entries = [cache.kv[index] for cache in caches]
            is_last = index == len(network.blocks) - 1
            self._layers.append(_read_layer(block, entries, self._num_members, is_last, dtype))
        hidden, _, output = network.output_projection
        self._head = [(layer.weight.detach().float(), layer.bias.detach().float()) for layer in (hidden, output)]
        self._max_rows = self._limit_rows(network.hidden_size)

    def _limit_rows(self, hidden_size: int) -> int:
        row_bytes = self._num_members * (self._cells.num_groups + 1) * hidden_size * torch.float32.itemsize
        row_cells = self._num_members * self._layers[0].num_heads
        return max(1, min(_MAX_HIDDEN_BYTES // row_bytes, MAX_CUDA_GRID // row_cells))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            starts = range(0, rows.shape[1], self._max_rows)
            passes = [self._pass(rows[:, start : start + self._max_rows]) for start in starts]
            return passes[0] if len(passes) == 1 else torch.cat(passes, dim=1)

    def _pass(self, rows: torch.Tensor) -> torch.Tensor:
        tokens = self._cells.embed(rows)
        for layer in self._layers:
            tokens = layer.apply(tokens)
        (hidden, hidden_bias), (output, output_bias) = self._head
        inner = functional.gelu(functional.linear(tokens[:, :, -1], hidden, hidden_bias))
        return functional.linear(inner, output, output_bias)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Prepared rows to tokens, by the statistics of the context: `TabPFNV2._embed_features`, statistics given.

    Cells are float32 [members, 1, groups * features_per_group] here; the library's [groups, features_per_group].
    """

    num_groups: int
    source: torch.Tensor  # int64: the column to read each cell from; the one past the padded width is all zero
    fill: torch.Tensor  # in the place of what is not finite
    mean: torch.Tensor
    deviation: torch.Tensor
    factor: torch.Tensor  # evens out groups in which columns are constant
    used: torch.Tensor  # bool: a constant column's cell becomes 0, whatever it holds
    projection: torch.Tensor  # [emsize, 2 * features_per_group]: a group's values, then its flags
    columns: torch.Tensor  # [groups, emsize]: the random embeddings
    target: torch.Tensor  # [members, 1, 1, emsize]: the target column of any test row

    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [members, rows, width] to [members, rows, groups + 1, emsize]."""
        members, num_rows, width = rows.shape
        padded = self.source.shape[-1]
        # One more zero column than the library pads with: where its groups are short, ours read that one.
        cells = functional.pad(rows, (0, padded - width + 1)).gather(2, self.source.expand(-1, num_rows, -1))
        infinite = torch.isinf(cells)
        # Flags as in _generate_nan_and_inf_indicator: -2 for NaN, 2 for +inf, 4 for -inf.
        flags = torch.isnan(cells) * -2.0 + infinite * torch.where(cells > 0, 2.0, 4.0)
        values = torch.where(flags == 0, cells, self.fill)
        values = ((values - self.mean) / self.deviation).clip(-100, 100)
        values = torch.where(self.used, values * self.factor, 0.0)
        pairs = torch.cat([cells.view(members, num_rows, self.num_groups, -1) for cells in (values, flags)], dim=-1)
        embedded = functional.linear(pairs, self.projection) + self.columns
        return torch.cat([embedded, self.target.expand(-1, num_rows, -1, -1)], dim=2)


def _read_cells(network: Any, caches: Sequence[Any], num_members: int) -> _Cells:
    def stack(key: str) -> torch.Tensor:
        return torch.cat([cache.feature_cache[key] for cache in caches])

    def flat(statistic: torch.Tensor) -> torch.Tensor:
        return statistic.float().reshape(num_members, 1, -1).contiguous()

    per_group = network.features_per_group
    used = stack("ng_non_constant_mask")
    factor = torch.sqrt(per_group / stack("ng_num_used_features")).expand_as(used)  # _normalize_feature_groups
    deviation = stack("scaler_std")
    target = torch.cat([cache.test_y_embedding for cache in caches])
    num_groups = used.shape[0] // num_members
    return _Cells(
        num_groups=num_groups,
        source=_sources(stack("column_selection_mask").bool().view(num_members, num_groups, per_group)),
        fill=flat(stack("feature_means")),
        mean=flat(stack("scaler_mean")),
        deviation=flat(deviation + torch.finfo(deviation.dtype).eps),
        factor=flat(factor),
        used=used.reshape(num_members, 1, -1),
        projection=network.feature_group_embedder.weight.detach().float(),
        columns=_column_embeddings(network, num_groups, target),
        target=target.float().view(num_members, 1, 1, -1),
    )


def _sources(kept: torch.Tensor) -> torch.Tensor:
    """Where each cell comes from, int64 [members, 1, padded width], as `_remove_constant_features` moves columns.

    A group's kept columns come first, in order; zeros follow. `kept` is [members, groups, features_per_group].
    """
    members, groups, per_group = kept.shape
    order = torch.argsort(kept.int(), dim=-1, descending=True, stable=True)
    first = torch.arange(groups, device=kept.device).view(1, groups, 1) * per_group
    filled = torch.arange(per_group, device=kept.device) < kept.sum(-1, keepdim=True)
    return torch.where(filled, order + first, groups * per_group).view(members, 1, -1)


def _column_embeddings(network: Any, num_groups: int, like: torch.Tensor) -> torch.Tensor:
    """`TabPFNV2.add_column_embeddings`: drawn on the device and in the dtype in which the cache was built."""
    linear = network.feature_positional_embedding_embeddings
    generator = torch.Generator(device=like.device).manual_seed(network.seed)
    shape = (num_groups, linear.in_features)
    drawn = torch.randn(shape, device=like.device, dtype=like.dtype, generator=generator)
    return functional.linear(drawn.float(), linear.weight.detach().float(), linear.bias.detach().float())


@dataclass(frozen=True, eq=False)
class _Layer:
    """`TabPFNBlock.forward` with `cached_kv`: attention between columns, attention to the context, MLP; post-norm.

    Products in the weights' dtype. It answers for the last `num_kept` columns: all, or the target's alone.
    """

    num_heads: int
    num_kept: int
    eps: float
    between_columns: torch.Tensor  # [3 * emsize, emsize]: query, key, value
    between_columns_out: torch.Tensor
    query: torch.Tensor
    query_out: torch.Tensor
    keys: torch.Tensor  # [members * kept columns, head_dim, context], centred, times 1 / sqrt(head_dim)
    values: torch.Tensor  # [members * kept columns, context, head_dim], centred
    mean_out: torch.Tensor  # float32 [members, 1, kept columns, emsize]: the values' mean, projected
    widen: torch.Tensor
    narrow: torch.Tensor

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 [members, rows, columns, emsize], overwritten; the kept columns of the next layer's."""
        kept = tokens[:, :, -self.num_kept :]
        kept = self._norm(kept.add_(self._attend_columns(tokens)))
        kept = self._norm(kept.add_(self._attend_context(kept)).add_(self.mean_out))
        hidden = functional.linear(kept.to(self.widen.dtype), self.widen)
        torch.ops.aten.gelu_(hidden)
        return self._norm(kept.add_(functional.linear(hidden, self.narrow)))

    def _norm(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)

    def _attend_columns(self, tokens: torch.Tensor) -> torch.Tensor:
        """AlongRowAttention of all members' rows at once."""
        members, rows, columns, emsize = tokens.shape
        fused = functional.linear(tokens.to(self.between_columns.dtype), self.between_columns)
        fused = fused.view(members * rows, columns, 3, self.num_heads, -1)
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query[:, :, -self.num_kept :], key, value)
        mixed = mixed.transpose(1, 2).reshape(members, rows, self.num_kept, emsize)
        return functional.linear(mixed, self.between_columns_out)

    def _attend_context(self, tokens: torch.Tensor) -> torch.Tensor:
        """AlongColumnAttention to the cached head, each column's rows and heads folded into one matrix."""
        members, rows, columns, emsize = tokens.shape
        query = functional.linear(tokens.to(self.query.dtype), self.query).transpose(1, 2)
        query = query.reshape(members * columns, rows * self.num_heads, -1)
        mixed = (_attend_tiled if _tiled(query) else _attend_fused)(query, self.keys, self.values)
        return functional.linear(mixed.view(members, columns, rows, emsize), self.query_out).transpose(1, 2)


def _read_layer(block: Any, entries: Sequence[Any], num_members: int, is_last: bool, dtype: torch.dtype) -> _Layer:
    across, along = block.per_sample_attention_between_features, block.per_column_attention_between_cells
    key, value = (torch.cat(parts)[:, :, 0].float() for parts in zip(*((e.key, e.value) for e in entries), strict=True))
    num_columns = key.shape[0] // num_members
    num_kept = 1 if is_last else num_columns
    if is_last:
        key, value = key[num_columns - 1 :: num_columns], value[num_columns - 1 :: num_columns]
    mean = value.mean(1, keepdim=True)
    # Every query head adds the same mean; the projection sees it once per head.
    mean_out = functional.linear(mean.repeat(1, 1, along.num_heads), along.out_projection.weight.float())
    keys = ((key - key.mean(1, keepdim=True)) / math.sqrt(along.head_dim)).to(dtype)

    def weight(*linears: Any) -> torch.Tensor:
        joined = linears[0].weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
        return joined.detach().to(dtype)

    return _Layer(
        num_heads=along.num_heads,
        num_kept=num_kept,
        eps=block.layernorm_mha1.eps,
        between_columns=weight(across.q_projection, across.k_projection, across.v_projection),
        between_columns_out=weight(across.out_projection),
        query=weight(along.q_projection),
        query_out=weight(along.out_projection),
        keys=_lay_out(keys),
        values=(value - mean).to(dtype).contiguous(),
        mean_out=mean_out.view(num_members, 1, num_kept, -1),
        widen=weight(block.mlp[0]),
        narrow=weight(block.mlp[2]),
    )


def _tiled(operand: torch.Tensor) -> bool:
    """Which kernel, by measurement: on a CPU (AVX-512 with bf16) tiles of batched products, on CUDA the fused one."""
    return operand.device.type == "cpu" and operand.dtype != torch.float16


def _lay_out(keys: torch.Tensor) -> torch.Tensor:
    """[columns, context, head_dim] as [columns, head_dim, context], in the memory order fastest for its kernel."""
    transposed = keys.transpose(1, 2)
    return transposed.contiguous() if _tiled(keys) and keys.dtype == torch.float32 else transposed


def _attend_fused(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    key = keys.transpose(1, 2).unsqueeze(1)
    return functional.scaled_dot_product_attention(query[:, None], key, values[:, None], scale=1.0)[:, 0]


def _attend_tiled(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Softmax(query @ keys) @ values, so many columns, or rows of one column, at a time as keep the scores small."""
    num_columns, num_queries, _ = query.shape
    budget = _TILE_BYTES // (keys.shape[2] * query.element_size())
    columns = min(max(1, budget // num_queries), num_columns)
    queries = min(max(1, budget), num_queries)
    mixed = torch.empty_like(query)
    scores = query.new_empty(columns * queries * keys.shape[2])
    for column in range(0, num_columns, columns):
        here = slice(column, column + columns)
        for start in range(0, num_queries, queries):
            part = query[here, start : start + queries]
            tile = scores[: part.shape[0] * part.shape[1] * keys.shape[2]].view(*part.shape[:2], -1)
            torch.bmm(part, keys[here], out=tile)
            torch.softmax(tile, dim=-1, out=tile)
            torch.bmm(tile, values[here], out=mixed[here, start : start + queries])
    return mixed
