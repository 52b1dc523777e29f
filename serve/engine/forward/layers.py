"""The layers of the compiled forward passes: linear layers, float32 norms, attention to a context.

Attention never holds all its scores at a time. Its scale is multiplied into the queries once, when a pass is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from serve.engine.forward.attention import BITS, MAX_EXP_SCORE, attend_tiled
from serve.engine.forward.processor import has_amx
from serve.engine.forward.products import Product, add_tanh, gelu, multiply_to

Attention = Callable[[torch.Tensor], torch.Tensor]
"""Takes queries [batch, heads, length, D] to attended values of the same shape."""

MAX_CUDA_GRID = 65_535
"""CUDA's largest grid axis; attention kernels place batch x heads along it (pytorch issue 142228)."""


_NARROW_WIDTH, _NARROW_WIDTH_PLAIN = 128, 32
"""A narrower layer stays in float32, on a CPU with AMX and on one without. Converting its input to bfloat16 costs as
much as the faster product saves. Without AMX the product saves more: 9,000 rows, 32 to 64 wide, take 0.23 ms,
conversion included, against 0.42."""


@dataclass(frozen=True)
class ComputeSpec:
    """Device and number formats of a forward pass, and the layers built for them.

    Attributes:
        dtype: of the weights.
        kv_dtype: of the cached keys and values; None takes `dtype`.
    """

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype | None = None

    @property
    def attention_dtype(self) -> torch.dtype:
        """Number format of attention to the cached context."""
        dtype = self.kv_dtype or self.dtype
        # A CPU's kernels keep scores in the dtype, and scores exceed float16's range; tabpfn widens there too.
        return torch.float32 if self.device.type == "cpu" and dtype == torch.float16 else dtype

    @property
    def short_dtype(self) -> torch.dtype:
        """Number format of attention to few keys.

        It is float32 on a CPU with AMX, where float32 is faster than bfloat16 for few keys. It is float32 as well on a
        CPU whose weights are float32: every later layer would carry the loss of a narrower format.
        """
        is_exact = self.device.type == "cpu" and (has_amx() or self.dtype == torch.float32)
        return torch.float32 if is_exact else self.attention_dtype

    def weight_dtype(self, weight: torch.Tensor) -> torch.dtype:
        """Number format of a layer's weights, by its width."""
        narrow = _NARROW_WIDTH if has_amx() else _NARROW_WIDTH_PLAIN
        return torch.float32 if self.device.type == "cpu" and min(weight.shape) < narrow else self.dtype

    def exact(self, value: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, in float32."""
        return value.detach().to(self.device, torch.float32)

    def stack(self, caches: Sequence[Any], field: Callable[[Any], torch.Tensor], dim: int = 0) -> torch.Tensor:
        """One field of all caches on the device, in float32, joined along `dim`."""
        return torch.cat([self.exact(field(cache)) for cache in caches], dim=dim)

    def gain(self, norm: Any) -> torch.Tensor:
        """A norm's weights in float32; ones for a norm without weights (v3)."""
        weight = getattr(norm, "weight", None)
        return torch.ones(norm.normalized_shape, device=self.device) if weight is None else self.exact(weight)

    def norm(self, module: Any) -> Norm:
        """A norm with its weights."""
        return Norm(self.gain(module), module.eps)

    def head_norm(self, module: Any | None, *, is_last: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
        """The norm of a head's queries or keys, to float32, without its weights: the layer that reads the result takes
        them over.

        Args:
            module: None where queries are not normed (v3).
            is_last: attention reads the answer as it is. On a GPU the answer then keeps its number format, which
                attention would give back to it.
        """
        keeps_dtype = is_last and self.device.type != "cpu"
        if module is None:
            return (lambda queries: queries) if keeps_dtype else torch.Tensor.float
        return Norm(None, module.eps, keeps_dtype)

    def linear(self, module: Any, heads: tuple[int, int] | None = None, norm: Any | None = None) -> Linear:
        """A linear layer; see `Linear`. It takes over the weights of `norm`, tabpfn's norm in front of it."""
        return Linear(module, self, heads, None if norm is None else self.gain(norm))

    def exact_linear(
        self, module: Any, heads: tuple[int, int] | None = None, gain: torch.Tensor | None = None
    ) -> Linear:
        """A linear layer with float32 weights; see `Linear`."""
        return Linear(module, ComputeSpec(self.device, torch.float32), heads, gain)

    def attend_to(self, keys: torch.Tensor, values: torch.Tensor, query_bound: torch.Tensor | None) -> Attention:
        """Attention to fixed `keys` and `values` [batch, context, heads, D].

        Args:
            query_bound: float32 [heads, queries per head, D]. Every query is this bound times, element by element, a
                vector of length 1 or less. None where no bound is known.
        """
        is_tiled = self.device.type == "cpu" and (self.attention_dtype == torch.float32 or not has_amx())
        max_score = math.inf
        if is_tiled and query_bound is not None:
            max_score = max(float((keys * part).norm(dim=-1).max()) for part in query_bound.unbind(1))
        keys = keys * BITS if is_tiled else keys
        fixed = [by_head(x.to(self.device, self.attention_dtype)) for x in (keys, values)]
        if is_tiled:
            return TiledAttention(*fixed, is_bounded=max_score <= MAX_EXP_SCORE)
        return lambda queries: attend(queries, *fixed)


class Linear:
    """(gain x) W^T + b from a `torch.nn.Linear`, in the spec's dtype for its width.

    Args:
        heads: number and width of the heads that split the last axis of the answer; None leaves it whole.
        gain: weights of a norm in front, float32 [in].
    """

    def __init__(
        self, module: Any, spec: ComputeSpec, heads: tuple[int, int] | None = None, gain: torch.Tensor | None = None
    ) -> None:
        self.dtype, self._heads = spec.weight_dtype(module.weight), heads
        weight = spec.exact(module.weight)
        self._product = Product((weight if gain is None else weight * gain).to(self.dtype))
        self._bias = None if module.bias is None else module.bias.detach().to(spec.device, self.dtype)
        self.packed = self._product.packed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product = self._product(x, self._bias)
        return product if self._heads is None else torch.unflatten(product, -1, self._heads)

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's answer in float32."""
        if self._bias is not None:
            return self(x).float()
        product = self._product.exact(x)
        return product if self._heads is None else torch.unflatten(product, -1, self._heads)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """gelu of the layer's answer; the last axis stays whole."""
        return self._product.gelu(x, self._bias)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Adds the layer's answer to `total`, float32 and contiguous, in place."""
        return self._product.add_to(total, x) if self._bias is None else total.add_(self(x))


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm over the last axis, computed in float32.

    Attributes:
        weight: None means weights of one.
        eps: None takes float32's.
        keeps_dtype: on a GPU, answer in the number format of the input; otherwise in float32. Needs `weight` None.
    """

    weight: torch.Tensor | None
    eps: float | None
    keeps_dtype: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
        x = x if self.keeps_dtype else x.float()
        if x.device.type != "cpu":
            return F.rms_norm(x, x.shape[-1:], self.weight, eps)
        # `F.rms_norm` would pass over x five times on a CPU.
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1])
        normed: torch.Tensor = x * square.add_(eps).rsqrt_()
        return normed if self.weight is None else normed.mul_(self.weight)


class FeedForward:
    """x + W2 gelu(W1 norm(x)), in place; x is float32 and contiguous."""

    def __init__(self, norm: Any, mlp: Any, spec: ComputeSpec) -> None:
        self._norm, self._up, self._down = Norm(None, norm.eps), spec.linear(mlp[0], norm=norm), spec.linear(mlp[2])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down.add_to(x, self._up.gelu(self._norm(x)))


class LengthScale:
    """Scales queries by head_dim ** -0.5 and by tabpfn's `SoftmaxScalingMLP` of the query and the context's length.

    Args:
        length: rows of the context.
        gain: weights of the queries' norm, float32 [head_dim], which the queries themselves come without.
        dtype: number format of the answer on a GPU; on a CPU it is float32.
    """

    def __init__(
        self, module: Any | None, num_heads: int, head_dim: int, length: int, spec: ComputeSpec,
        gain: torch.Tensor | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self._dtype = torch.float32 if spec.device.type == "cpu" else dtype
        base = torch.ones(num_heads * head_dim, device=spec.device)
        self._query = None
        if module is not None:
            first, second = (spec.exact_linear(module.base_mlp[i]) for i in (0, 2))
            log_length = torch.full((1, 1), max(length, 1), dtype=torch.float32, device=spec.device).log()
            base = second(F.gelu(first(log_length)))
            self._query = [spec.exact_linear(module.query_mlp[0], gain=gain), spec.exact_linear(module.query_mlp[2])]
        self._base = base.view(num_heads, head_dim) * float(head_dim**-0.5)
        if gain is not None:
            self._base = self._base * gain
        self.query_bound = self._base.abs() * (math.sqrt(head_dim) * (1 if self._query is None else 2))
        """Float32 [heads, head_dim], for queries from an RMS norm; see `ComputeSpec.attend_to`. 1 + tanh is up to 2."""

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        """float32 [..., heads, head_dim] to the same shape."""
        if self._query is None:
            return multiply_to(queries, self._base, self._dtype)
        first, second = self._query
        return add_tanh(queries * self._base, second(gelu(first(queries))), self._dtype)


class TiledAttention:
    """Attention to one fixed context on a CPU, by `attend_tiled`.

    Args:
        keys: [batch, heads, context, D], multiplied by `BITS`.
        values: [batch, heads, context, D]; their dtype is that of the computation.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, is_bounded: bool) -> None:
        self._keys, self._values = keys.flatten(0, 1).transpose(1, 2).contiguous(), values.flatten(0, 1)
        self._is_bounded = is_bounded

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        folded = queries.to(self._values.dtype).flatten(0, 1)
        return attend_tiled(folded, self._keys, self._values, is_bounded=self._is_bounded).view_as(queries)


def by_head(x: torch.Tensor) -> torch.Tensor:
    """[batch, length, heads, head_dim] to contiguous [batch, heads, length, head_dim]."""
    return x.transpose(1, 2).contiguous()


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """softmax(queries keys^T) values over [batch, heads, length, head_dim], in the values' dtype."""
    queries = queries.to(values.dtype)
    step = max(1, MAX_CUDA_GRID // queries.shape[1])
    if queries.device.type == "cpu" or queries.shape[0] <= step:
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    slices = [slice(start, start + step) for start in range(0, queries.shape[0], step)]
    return torch.cat([F.scaled_dot_product_attention(queries[i], keys[i], values[i], scale=1.0) for i in slices])
