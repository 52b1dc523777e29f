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

from serve.engine.forward.attention import BITS, MAX_EXP_SCORE, attend_tiled, attend_tokens
from serve.engine.forward.layers import Norm
from serve.engine.forward.processor import has_amx
from serve.engine.forward.products import Product
from serve.engine.forward.v2_cells import Part

_MANY_QUERIES = 64
"""On a CPU with AMX, from so many queries on, torch's fused kernel beats tiles in bfloat16; see `_use_tiles`."""


def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tokens [members, rows, columns, emsize] of each part to one matrix [tokens, emsize]."""
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _divide(matrix: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    """The parts of a matrix of tokens, as [members, rows, columns, width]."""
    parts = torch.split(matrix, [shape.numel() for shape in shapes])
    return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]


@dataclass(frozen=True, eq=False)
class _Context:
    """What a layer holds of one part's context.

    Attributes:
        keys: [members * kept columns, head_dim, context], centred, multiplied by BITS / sqrt(head_dim).
        values: [members * kept columns, context, head_dim], centred.
        is_bounded: whether no score can exceed MAX_EXP_SCORE, for any tokens.
        mean_out: float32 [members, 1, kept columns, emsize]: the projected mean of the values.
    """

    keys: torch.Tensor
    values: torch.Tensor
    is_bounded: bool
    mean_out: torch.Tensor

    def attend(self, query: torch.Tensor, num_heads: int) -> torch.Tensor:
        """`AlongColumnAttention` to the cached head, as [members, rows, kept columns, emsize].

        A column's rows and heads are folded into one matrix. `query` is [members, rows, kept columns, emsize].
        """
        members, rows, columns, emsize = query.shape
        query = query.transpose(1, 2).reshape(members * columns, rows * num_heads, -1).to(self.keys.dtype)
        if _use_tiles(self.keys, query.shape[1]):
            mixed = attend_tiled(query, self.keys, self.values, is_bounded=self.is_bounded)
        else:
            mixed = _attend_fused(query, self.keys, self.values)
        return mixed.view(members, columns, rows, emsize).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Layer:
    """`TabPFNBlock.forward` with `cached_kv`: attention between columns, attention to the context, and an MLP.

    A norm follows each of the three. The last layer answers for the target column alone.
    """

    num_heads: int
    is_last: bool
    norms: Sequence[Callable[[torch.Tensor], torch.Tensor]]
    between_columns: Product  # [3 * emsize, emsize]: query, key, value
    between_columns_out: Product
    query: Product
    query_out: Product
    contexts: Sequence[_Context]  # of each part
    widen: Product
    narrow: Product

    def apply(self, tokens: torch.Tensor, shapes: Sequence[torch.Size]) -> torch.Tensor:
        """Tokens float32 [tokens, emsize], overwritten, to those of the kept columns, which the next layer reads.

        Args:
            shapes: members, rows and columns of each part.
        """
        mixed = [self._attend_columns(part) for part in _divide(self.between_columns(tokens), shapes)]
        if self.is_last:
            tokens = join([part[:, :, -1:] for part in _divide(tokens, shapes)])
            shapes = [torch.Size((*shape[:2], 1)) for shape in shapes]
        for part, attended in zip(_divide(tokens, shapes), mixed, strict=True):
            _add(part, self.between_columns_out, attended)
        tokens = self.norms[0](tokens)
        queries = _divide(self.query(tokens), shapes)
        for part, query, context in zip(_divide(tokens, shapes), queries, self.contexts, strict=True):
            _add(part, self.query_out, context.attend(query, self.num_heads)).add_(context.mean_out)
        tokens = self.norms[1](tokens)
        return self.norms[2](_add(tokens, self.narrow, self.widen.gelu(tokens)))

    def _attend_columns(self, fused: torch.Tensor) -> torch.Tensor:
        """`AlongRowAttention` of a part's rows, [members, rows, columns, 3 emsize], for its kept columns."""
        members, rows, columns, _ = fused.shape
        query, key, value = fused.view(members * rows, columns, 3, self.num_heads, -1).unbind(2)
        query, scale = query[:, -1:] if self.is_last else query, 1 / math.sqrt(query.shape[-1])
        if query.device.type == "cpu":
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
            mixed = attend_tokens(query, key, value, scale=scale).transpose(0, 1)
        else:
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)
        return mixed.reshape(members, rows, mixed.shape[1], -1)


def _add(tokens: torch.Tensor, product: Product, x: torch.Tensor) -> torch.Tensor:
    """Adds the product of x to contiguous tokens, in place."""
    return tokens.add_(product(x)) if tokens.device.type == "cpu" else product.add_to(tokens, x)


def read_layer(
    block: Any, parts: Sequence[Part], index: int, is_last: bool, dtype: torch.dtype, kv_dtype: torch.dtype
) -> Layer:
    """Layer `index` of the network, tabpfn's `block`, with its part of every cache; see `CellsForward`."""
    across, along = block.per_sample_attention_between_features, block.per_column_attention_between_cells

    def product(*linears: Any) -> Product:
        """One product for several linear layers; their outputs follow one another."""
        return Product(torch.cat([linear.weight.detach() for linear in linears]).to(dtype))

    return Layer(
        num_heads=along.num_heads,
        is_last=is_last,
        norms=[_read_norm(norm) for norm in (block.layernorm_mha1, block.layernorm_mha2, block.layernorm_mlp)],
        between_columns=product(across.q_projection, across.k_projection, across.v_projection),
        between_columns_out=product(across.out_projection),
        query=product(along.q_projection),
        query_out=product(along.out_projection),
        contexts=[_read_context(block, part, index, is_last, kv_dtype) for part in parts],
        widen=product(block.mlp[0]),
        narrow=product(block.mlp[2]),
    )


def _read_context(block: Any, part: Part, index: int, is_last: bool, kv_dtype: torch.dtype) -> _Context:
    along, entries = block.per_column_attention_between_cells, [cache.kv[index] for cache in part.caches]
    key, value = (torch.cat(parts)[:, :, 0].float() for parts in zip(*((e.key, e.value) for e in entries), strict=True))
    num_members = len(part.cells.target)
    num_columns = key.shape[0] // num_members
    if is_last:
        key, value = key[num_columns - 1 :: num_columns], value[num_columns - 1 :: num_columns]
    mean = value.mean(1, keepdim=True)
    # Every query head adds the same mean, so the projection takes it once per head.
    mean_out = functional.linear(mean.repeat(1, 1, along.num_heads), along.out_projection.weight.float())
    exact_keys = (key - key.mean(1, keepdim=True)) / math.sqrt(along.head_dim)
    return _Context(
        keys=_lay_out((exact_keys * BITS).to(kv_dtype)),
        values=(value - mean).to(kv_dtype).contiguous(),
        is_bounded=_largest_score(block.layernorm_mha1, along, exact_keys) <= MAX_EXP_SCORE,
        mean_out=mean_out.view(num_members, 1, 1 if is_last else num_columns, -1),
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
