"""The layers that test-only forwards are made of: packed products, float32 norms, attention to a fixed context.

Attention never holds all its scores, and takes its scale from the queries, into which it was multiplied once.
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

Attention = Callable[[torch.Tensor], torch.Tensor]
"""Queries [batch, heads, length, D] to what they attend to, in the same shape."""

_PACKED_CELLS = 1 << 18
"""Weights from this size on are packed for oneDNN on a CPU: 0.6 of the time of `F.linear` at 8 rows, 0.75 at 256."""

_MANY_PRODUCTS = 1 << 23
"""From so many multiplications on, a CPU without AMX is quicker by oneDNN even with weights as they are: MKL, to which
torch gives float32 products, knows Intel's best (4,096 rows, 192 to 768 wide: 11.4 ms against 12.8, with a GELU 12.7
against 14). With fewer, what oneDNN does before it starts is more: 1,000 rows of 64 to 32, 0.055 against 0.048."""

_FEW_NUMBERS = 1 << 12
"""Up to so many, `gelu` by plain operations is faster on a CPU: 4 us against 9 for 2,000, 50 against 31 for 65,000."""

MAX_CUDA_GRID = 65_535
"""CUDA's largest grid axis, over which attention kernels lay batch x heads (pytorch issue 142228)."""


_NARROW_WIDTH, _NARROW_WIDTH_PLAIN = 128, 32
"""On a CPU with AMX, and on one without, a narrower layer stays in float32: converting its input costs what bfloat16
products save. Without AMX they save more: 9,000 rows of 32 to 64 take 0.23 ms, conversion included, against 0.42."""


@dataclass(frozen=True)
class ComputeSpec:
    """Where and how precisely to compute: weights in `dtype`, cached keys and values in `kv_dtype` (None: the same)."""

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype | None = None

    @property
    def attention_dtype(self) -> torch.dtype:
        """Of attention to the cached context."""
        dtype = self.kv_dtype or self.dtype
        # Scores pass the range of float16, in which a CPU's kernels keep them; the library widens there too.
        return torch.float32 if self.device.type == "cpu" and dtype == torch.float16 else dtype

    @property
    def short_dtype(self) -> torch.dtype:
        """Of attention to few keys: on a CPU with AMX float32, in which it is faster than in bfloat16, and where
        weights are float32 as they are: what these attentions lose, all that follows has lost."""
        is_exact = self.device.type == "cpu" and (has_amx() or self.dtype == torch.float32)
        return torch.float32 if is_exact else self.attention_dtype

    def weight_dtype(self, weight: torch.Tensor) -> torch.dtype:
        """Of a layer's weights, by the width of it."""
        narrow = _NARROW_WIDTH if has_amx() else _NARROW_WIDTH_PLAIN
        return torch.float32 if self.device.type == "cpu" and min(weight.shape) < narrow else self.dtype

    def exact(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach().to(self.device, torch.float32)

    def stack(self, caches: Sequence[Any], field: Callable[[Any], torch.Tensor], dim: int = 0) -> torch.Tensor:
        """One field of all caches in float32, members end to end."""
        return torch.cat([self.exact(field(cache)) for cache in caches], dim=dim)

    def gain(self, norm: Any) -> torch.Tensor:
        """The weights of a norm, float32; ones where it has none (v3)."""
        weight = getattr(norm, "weight", None)
        return torch.ones(norm.normalized_shape, device=self.device) if weight is None else self.exact(weight)

    def norm(self, module: Any) -> Norm:
        return Norm(self.gain(module), module.eps)

    def head_norm(self, module: Any | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """To float32, without its weights, which go to what reads its result; `module` is None where queries are not
        normed (v3)."""
        return torch.Tensor.float if module is None else Norm(None, module.eps)

    def linear(self, module: Any, heads: tuple[int, int] | None = None, norm: Any | None = None) -> Linear:
        """`norm` is the library's norm before it, whose weights it takes over."""
        return Linear(module, self, heads, None if norm is None else self.gain(norm))

    def exact_linear(
        self, module: Any, heads: tuple[int, int] | None = None, gain: torch.Tensor | None = None
    ) -> Linear:
        return Linear(module, ComputeSpec(self.device, torch.float32), heads, gain)

    def attend_to(self, keys: torch.Tensor, values: torch.Tensor, query_bound: torch.Tensor | None) -> Attention:
        """Attention to fixed `keys` and `values` [batch, context, heads, D].

        `query_bound`, float32 [heads, queries of each, D]: each query is this bound times a vector of length 1
        or less. None: unknown.
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


class Product:
    """x W^T (+ b) in the dtype of W [out, in], by oneDNN where that is faster."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._dtype = weight.dtype
        has_onednn = (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )
        self.packed = has_onednn and weight.numel() >= _PACKED_CELLS
        self._min_numbers = _MANY_PRODUCTS // weight.shape[0] if has_onednn and not has_amx() else None
        weight = weight.contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        x = x.to(self._dtype)
        if not self._is_by_onednn(x):
            return F.linear(x, self.weight, bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return product

    def gelu(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """gelu of the product, which oneDNN applies to what it has just computed."""
        if not self._is_by_onednn(x):
            return gelu(self(x, bias))
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._dtype), self.weight, bias, "gelu", [], "none"
        )
        return product

    def _is_by_onednn(self, x: torch.Tensor) -> bool:
        return self.packed or (self._min_numbers is not None and x.numel() >= self._min_numbers)


class Linear:
    """(gain x) W^T + b in the place's dtype, from a `torch.nn.Linear`; `heads` (number, width) splits its last axis."""

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

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """gelu of the product."""
        return self._product.gelu(x, self._bias)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`total`, float32 and contiguous, with the product added in place."""
        if self.packed or self._bias is not None or self.dtype != torch.float32:
            return total.add_(self(x))
        total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]).float(), self._product.weight.t())
        return total


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm over the last axis, in float32; no weights are ones."""

    weight: torch.Tensor | None
    eps: float | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # On a CPU `F.rms_norm` passes over x five times.
        x = x.float()
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1])
        normed: torch.Tensor = x * square.add_(eps).rsqrt_()
        return normed if self.weight is None else normed.mul_(self.weight)


class FeedForward:
    """x + W2 gelu(W1 norm(x)); x, float32 and contiguous, is overwritten."""

    def __init__(self, norm: Any, mlp: Any, spec: ComputeSpec) -> None:
        self._norm, self._up, self._down = Norm(None, norm.eps), spec.linear(mlp[0], norm=norm), spec.linear(mlp[2])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down.add_to(x, self._up.gelu(self._norm(x)))


class LengthScale:
    """Queries times what `SoftmaxScalingMLP` makes of them and of the context's length, and times head_dim ** -0.5.

    Queries are given without `gain`, the weights of the norm that they come from.
    """

    def __init__(
        self, module: Any | None, num_heads: int, head_dim: int, length: int, spec: ComputeSpec,
        gain: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
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
        """Float32 [heads, head_dim], of the output of an RMS norm; see `ComputeSpec.attend_to`. The tanh doubles it."""

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        """float32 [..., heads, head_dim] to the same."""
        scaled = queries * self._base
        if self._query is None:
            return scaled
        first, second = self._query
        return add_tanh(scaled, second(gelu(first(queries))))


class RotaryProjection:
    """Projection, rotary embedding and RMS norm of tokens by their position, the rotation folded into the weights.

    A rotation leaves the norm as it is, so it may stand before it: every position has a projection of its own.

    Args:
        norm: the library's, or None. Its weights are not applied, but `gain` is: float32 [head_dim].
        angles: float32 [tokens, head_dim / 2], position times frequency.
        before: the library's norm before the projection, whose weights it takes over.
    """

    def __init__(
        self, module: Any, norm: Any | None, angles: torch.Tensor, heads: tuple[int, int], spec: ComputeSpec,
        before: Any, gain: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self._heads, self._gain = heads, gain
        weight = (spec.exact(module.weight) * spec.gain(before)).T.reshape(-1, *heads)  # [E, heads, head_dim]
        cos, sin = (torch.cat([part, part], dim=-1)[:, None, None] for part in (angles.cos(), angles.sin()))
        first, second = weight.chunk(2, dim=-1)
        turned = weight * cos + torch.cat([-second, first], dim=-1) * sin
        # [tokens, E, heads head_dim]
        self._weights = turned.flatten(2).to(spec.weight_dtype(module.weight)).contiguous()
        self._eps = None if norm is None else norm.eps or torch.finfo(torch.float32).eps
        largest = 1.0 if gain is None else float(gain.abs().max())
        self.max_length = math.inf if norm is None else math.sqrt(heads[1]) * largest
        """The longest that an answer can be."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, rows, E] to float32 [tokens, rows, heads, head_dim]."""
        product = torch.bmm(x.to(self._weights.dtype), self._weights).float()
        turned = product.view(*product.shape[:2], *self._heads)
        if self._eps is not None:
            square = torch.linalg.vector_norm(turned, dim=-1, keepdim=True).square_().mul_(1 / turned.shape[-1])
            turned.mul_(square.add_(self._eps).rsqrt_())
        return turned if self._gain is None else turned.mul_(self._gain)


class TiledAttention:
    """`attend` to one context on a CPU, by `attend_tiled`, in the dtype of keys (times `BITS`) and values."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, is_bounded: bool) -> None:
        self._keys, self._values = keys.flatten(0, 1).transpose(1, 2).contiguous(), values.flatten(0, 1)
        self._is_bounded = is_bounded

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        folded = queries.to(self._values.dtype).flatten(0, 1)
        return attend_tiled(folded, self._keys, self._values, is_bounded=self._is_bounded).view_as(queries)


def add_tanh(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x (1 + tanh(y)); both may be overwritten. 1 + tanh(y) is 2 sigmoid(2 y), for which torch has its own vector code
    on a CPU (192,000 numbers on an AMD EPYC: 0.08 ms against 0.49 of MKL's tanh)."""
    if x.device.type != "cpu" or x.numel() <= _FEW_NUMBERS:
        return torch.addcmul(x, x, torch.tanh(y))
    return y.mul_(2).sigmoid_().mul_(2).mul_(x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """`F.gelu`, which may overwrite x. On a CPU that sets up a oneDNN primitive: of few numbers half of its time goes
    there."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() > _FEW_NUMBERS:
        activated: torch.Tensor = torch.ops.aten.gelu_(x)
        return activated
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(x).mul_(0.5)


def by_head(x: torch.Tensor) -> torch.Tensor:
    """[batch, length, heads, head_dim] to contiguous [batch, heads, length, head_dim], as attention takes it."""
    return x.transpose(1, 2).contiguous()


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """softmax(queries keys^T) values over [batch, heads, length, head_dim], in the values' dtype."""
    queries = queries.to(values.dtype)
    step = max(1, MAX_CUDA_GRID // queries.shape[1])
    if queries.device.type == "cpu" or queries.shape[0] <= step:
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    slices = [slice(start, start + step) for start in range(0, queries.shape[0], step)]
    return torch.cat([F.scaled_dot_product_attention(queries[i], keys[i], values[i], scale=1.0) for i in slices])
