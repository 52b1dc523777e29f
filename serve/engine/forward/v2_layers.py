"""The layers that v2, v2.5 and v2.6 share: tokens to logits, every member of a cache group in one pass.

What is always true:
- `TabPFNV2.forward(x, kv_cache=..., x_is_test_only=True)` is the reference (tabpfn/architectures/tabpfn_v2.py). It
  runs one member at a time. The members share the weights, so here they are one more batch axis;
- everything that depends on cache and weights alone is computed when the pass is built: each cell's column, the
  scaling, the columns' random embeddings (drawn on the device that serves, as tabpfn draws them), the target column,
  fused weights;
- keys and values have a single head, so all query heads of all rows of a column form one matrix [rows * heads,
  head_dim]: a call reads a column's context once, not once per head. The softmax scale is folded into the keys. It is
  not folded into the weights of attention between columns: tokens are not normed before the first layer, so the
  products of an outlying cell are in the hundreds and cancel in a score, and a weight that is rounded differently from
  tabpfn's would show;
- keys are centred over the context. A constant added to every score of a query leaves its softmax unchanged, and a
  score near zero keeps more digits in low precision. Values are centred too; their mean is added behind the projection;
- the residual stream, norms, embeddings and the output head are float32; `dtype` is the format of the products between;
- the answer is read from the target column, so the last layer is computed for that column only;
- rows never meet. Large steps are cut along rows or columns by shapes alone, never by values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from serve.engine.forward import Forward
from serve.engine.forward.attention import BITS, MAX_EXP_SCORE, attend_tiled, attend_tokens
from serve.engine.forward.layers import MAX_CUDA_GRID, Norm
from serve.engine.forward.processor import has_amx
from serve.engine.forward.products import Product
from serve.engine.forward.v2_cells import Cells

_MANY_QUERIES = 64
"""On a CPU with AMX, from so many queries on, torch's fused kernel beats tiles in bfloat16; see `_use_tiles`."""
_MAX_HIDDEN_BYTES = 256 * 2**20
"""Most bytes of one pass's widest activation, the hidden layer of the MLP; more rows take several passes."""


def side_by_side(forwards: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> Forward:
    """The forward pass of several groups, each by its own: their widths differ in every layer."""

    def run(*rows: torch.Tensor) -> torch.Tensor:
        answers = [forward(part) for forward, part in zip(forwards, rows, strict=True)]
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    return run


class CellsForward:
    """The forward pass of one group: float32 [members, rows, width] to float32 [members, rows, outputs].

    Args:
        network: tabpfn's module.
        caches: tabpfn's KV caches of the group.
        cells: how the group's rows become tokens.
        dtype: number format of the weights.
        kv_dtype: number format of the cached keys and values, and of attention to them.
    """

    def __init__(
        self, network: Any, caches: Sequence[Any], cells: Cells, dtype: torch.dtype, kv_dtype: torch.dtype
    ) -> None:
        self._num_members, self._cells = len(cells.target), cells
        self._layers = []
        for index, block in enumerate(network.blocks):
            entries = [cache.kv[index] for cache in caches]
            is_last = index == len(network.blocks) - 1
            self._layers.append(_read_layer(block, entries, self._num_members, is_last, dtype, kv_dtype))
        hidden, _, output = network.output_projection
        self._head = [(layer.weight.detach().float(), layer.bias.detach().float()) for layer in (hidden, output)]
        self._max_rows = self._limit_rows(max(network.hidden_size, *map(len, cells.projections)))

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
class _Layer:
    """`TabPFNBlock.forward` with `cached_kv`: attention between columns, attention to the context, and an MLP.

    A norm follows each of the three. The layer answers for the last `num_kept` columns: all of them, or the target
    column alone.
    """

    num_heads: int
    num_kept: int
    norms: Sequence[Callable[[torch.Tensor], torch.Tensor]]
    between_columns: Product  # [3 * emsize, emsize]: query, key, value
    between_columns_out: Product
    query: Product
    query_out: Product
    keys: torch.Tensor  # [members * kept columns, head_dim, context], centred, multiplied by BITS / sqrt(head_dim)
    values: torch.Tensor  # [members * kept columns, context, head_dim], centred
    is_bounded: bool  # whether no score can exceed MAX_EXP_SCORE, for any tokens
    mean_out: torch.Tensor  # float32 [members, 1, kept columns, emsize]: the projected mean of the values
    widen: Product
    narrow: Product

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 [members, rows, columns, emsize], overwritten, to the kept columns, which the next layer reads."""
        kept = tokens[:, :, -self.num_kept :]
        kept = self.norms[0](kept.add_(self._attend_columns(tokens)))
        kept = self.norms[1](kept.add_(self._attend_context(kept)).add_(self.mean_out))
        return self.norms[2](kept.add_(self.narrow(self.widen.gelu(kept))))

    def _attend_columns(self, tokens: torch.Tensor) -> torch.Tensor:
        """`AlongRowAttention` of all members' rows at once."""
        members, rows, columns, emsize = tokens.shape
        fused = self.between_columns(tokens)
        query, key, value = fused.view(members * rows, columns, 3, self.num_heads, -1).unbind(2)
        query, scale = query[:, -self.num_kept :], 1 / math.sqrt(query.shape[-1])
        if query.device.type == "cpu":
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
            mixed = attend_tokens(query, key, value, scale=scale).transpose(0, 1)
        else:
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)
        return self.between_columns_out(mixed.reshape(members, rows, self.num_kept, emsize))

    def _attend_context(self, tokens: torch.Tensor) -> torch.Tensor:
        """`AlongColumnAttention` to the cached head; a column's rows and heads are folded into one matrix."""
        members, rows, columns, emsize = tokens.shape
        query = self.query(tokens).transpose(1, 2)
        query = query.reshape(members * columns, rows * self.num_heads, -1)
        query = query.to(self.keys.dtype)
        if _use_tiles(self.keys, query.shape[1]):
            mixed = attend_tiled(query, self.keys, self.values, is_bounded=self.is_bounded)
        else:
            mixed = _attend_fused(query, self.keys, self.values)
        return self.query_out(mixed.view(members, columns, rows, emsize)).transpose(1, 2)


def _read_layer(
    block: Any, entries: Sequence[Any], num_members: int, is_last: bool, dtype: torch.dtype, kv_dtype: torch.dtype
) -> _Layer:
    across, along = block.per_sample_attention_between_features, block.per_column_attention_between_cells
    key, value = (torch.cat(parts)[:, :, 0].float() for parts in zip(*((e.key, e.value) for e in entries), strict=True))
    num_columns = key.shape[0] // num_members
    num_kept = 1 if is_last else num_columns
    if is_last:
        key, value = key[num_columns - 1 :: num_columns], value[num_columns - 1 :: num_columns]
    mean = value.mean(1, keepdim=True)
    # Every query head adds the same mean, so the projection takes it once per head.
    mean_out = functional.linear(mean.repeat(1, 1, along.num_heads), along.out_projection.weight.float())
    exact_keys = (key - key.mean(1, keepdim=True)) / math.sqrt(along.head_dim)
    keys = (exact_keys * BITS).to(kv_dtype)

    def product(*linears: Any) -> Product:
        """One product for several linear layers; their outputs follow one another."""
        return Product(torch.cat([linear.weight.detach() for linear in linears]).to(dtype))

    return _Layer(
        num_heads=along.num_heads,
        num_kept=num_kept,
        norms=[_read_norm(norm) for norm in (block.layernorm_mha1, block.layernorm_mha2, block.layernorm_mlp)],
        between_columns=product(across.q_projection, across.k_projection, across.v_projection),
        between_columns_out=product(across.out_projection),
        query=product(along.q_projection),
        query_out=product(along.out_projection),
        keys=_lay_out(keys),
        values=(value - mean).to(kv_dtype).contiguous(),
        is_bounded=_largest_score(block.layernorm_mha1, along, exact_keys) <= MAX_EXP_SCORE,
        mean_out=mean_out.view(num_members, 1, num_kept, -1),
        widen=product(block.mlp[0]),
        narrow=product(block.mlp[2]),
    )


def _largest_score(norm: Any, attention: Any, keys: torch.Tensor) -> float:
    """Upper bound of the scores that queries from normed tokens can have with `keys` [columns, context, head_dim].

    A normed token's length is the root of its width; the norm's weights, where it has some, are multiplied into the
    projection. A key's largest score is then that root times the key's length in the head's metric, W W^T.
    """
    heads = attention.q_projection.weight.detach().float().unflatten(0, (-1, keys.shape[-1]))
    weight = getattr(norm, "weight", None)
    heads = heads if weight is None else heads * weight.detach().float()
    longest = max(float((keys @ metric).mul_(keys).sum(-1).amax()) for metric in heads @ heads.transpose(1, 2))
    return math.sqrt(max(longest, 0.0) * heads.shape[-1])


def _read_norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """v2.6's norm, an RMS norm with weights, or the others' layer norm without weights."""
    if isinstance(module, torch.nn.RMSNorm):
        return Norm(module.weight.detach().float(), module.eps)
    return partial(functional.layer_norm, normalized_shape=module.normalized_shape, eps=module.eps)


def _use_tiles(keys: torch.Tensor, num_queries: int) -> bool:
    """Whether `attend_tiled` is faster than torch's fused kernel, by measurement.

    On CUDA the fused kernel is faster. On a CPU tiles are, but for many queries in bfloat16 with AMX: 192 queries to
    1,000 keys take 10 ms by the fused kernel and 15 by tiles; without AMX 6.6 and 4.6.
    """
    if keys.device.type != "cpu" or keys.dtype == torch.float16:
        return False
    return keys.dtype == torch.float32 or num_queries < _MANY_QUERIES or not has_amx()


def _lay_out(keys: torch.Tensor) -> torch.Tensor:
    """[columns, context, head_dim] as [columns, head_dim, context], in the memory order that suits the kernel."""
    transposed = keys.transpose(1, 2)
    return transposed.contiguous() if keys.device.type == "cpu" and keys.dtype == torch.float32 else transposed


def _attend_fused(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    key = keys.transpose(1, 2).unsqueeze(1)
    return functional.scaled_dot_product_attention(query[:, None], key, values[:, None], scale=1 / BITS)[:, 0]
