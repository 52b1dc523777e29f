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

from serve.engine.forward.attention import MAX_EXP_SCORE, attend_tiled

Attention = Callable[[torch.Tensor], torch.Tensor]
"""Queries [batch, heads, length, D] to what they attend to, in the same shape."""

_PACKED_CELLS = 1 << 18
"""Weights from this size on are packed for oneDNN on a CPU: 0.6 of the time of `F.linear` at 8 rows, 0.75 at 256."""

_FEW_NUMBERS = 1 << 12
"""Up to so many, `gelu` by plain operations is faster on a CPU: 4 us against 9 for 2,000, 50 against 31 for 65,000."""

MAX_CUDA_GRID = 65_535
"""CUDA's largest grid axis, over which attention kernels lay batch x heads (pytorch issue 142228)."""


_NARROW_WIDTH = 128
"""On a CPU a narrower layer stays in float32: converting its input costs what bfloat16 products save (measured)."""


@dataclass(frozen=True)
class Place:
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
        """Of attention to few keys: on a CPU float32, in which it is faster than in bfloat16."""
        return torch.float32 if self.device.type == "cpu" else self.attention_dtype

    def weight_dtype(self, weight: torch.Tensor) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" and min(weight.shape) < _NARROW_WIDTH else self.dtype

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
        return Linear(module, Place(self.device, torch.float32), heads, gain)

    def attend_to(self, keys: torch.Tensor, values: torch.Tensor, max_query_length: float) -> Attention:
        """Attention to fixed `keys` and `values` [batch, context, heads, D], of queries no longer than that."""
        if self.device.type == "cpu" and self.attention_dtype == torch.float32:
            max_score = max_query_length * float(keys.norm(dim=-1).max())
            return TiledAttention(by_head(keys), by_head(values), is_bounded=max_score <= MAX_EXP_SCORE)
        fixed = [by_head(x.to(self.device, self.attention_dtype)) for x in (keys, values)]
        return lambda queries: attend(queries, *fixed)


class Linear:
    """(gain x) W^T + b in the place's dtype, from a `torch.nn.Linear`; `heads` (number, width) splits its last axis."""

    def __init__(
        self, module: Any, place: Place, heads: tuple[int, int] | None = None, gain: torch.Tensor | None = None
    ) -> None:
        self._dtype, self._heads = place.weight_dtype(module.weight), heads
        weight = place.exact(module.weight)
        self._weight = (weight if gain is None else weight * gain).to(self._dtype)
        self._bias = None if module.bias is None else module.bias.detach().to(place.device, self._dtype)
        self.packed = (
            place.device.type == "cpu"
            and self._dtype in (torch.float32, torch.bfloat16)
            and module.weight.numel() >= _PACKED_CELLS
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )
        if self.packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self._dtype)
        if self.packed:
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        else:
            product = F.linear(x, self._weight, self._bias)
        return product if self._heads is None else torch.unflatten(product, -1, self._heads)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`total`, float32 and contiguous, with the product added in place."""
        if self.packed or self._bias is not None or self._dtype != torch.float32:
            return total.add_(self(x))
        total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]).float(), self._weight.t())
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

    def __init__(self, norm: Any, mlp: Any, place: Place) -> None:
        self._norm, self._up, self._down = Norm(None, norm.eps), place.linear(mlp[0], norm=norm), place.linear(mlp[2])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down.add_to(x, gelu(self._up(self._norm(x))))


class LengthScale:
    """Queries times what `SoftmaxScalingMLP` makes of them and of the context's length, and times head_dim ** -0.5.

    Queries are given without `gain`, the weights of the norm that they come from.
    """

    def __init__(
        self, module: Any | None, num_heads: int, head_dim: int, length: int, place: Place,
        gain: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        base = torch.ones(num_heads * head_dim, device=place.device)
        self._query = None
        if module is not None:
            first, second = (place.exact_linear(module.base_mlp[i]) for i in (0, 2))
            log_length = torch.full((1, 1), max(length, 1), dtype=torch.float32, device=place.device).log()
            base = second(F.gelu(first(log_length)))
            self._query = [place.exact_linear(module.query_mlp[0], gain=gain), place.exact_linear(module.query_mlp[2])]
        self._base = base.view(num_heads, head_dim) * float(head_dim**-0.5)
        if gain is not None:
            self._base = self._base * gain
        self.max_length = 2 * math.sqrt(head_dim) * float(self._base.abs().max())
        """The longest that a query can be that an RMS norm gave: its tanh adds at most as much."""

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        """float32 [..., heads, head_dim] to the same."""
        scaled = queries * self._base
        if self._query is None:
            return scaled
        first, second = self._query
        return torch.addcmul(scaled, scaled, torch.tanh(second(gelu(first(queries)))))


class TurnedHeads:
    """Projection, rotary embedding and RMS norm of tokens by their position, the rotation folded into the weights.

    A rotation leaves the norm as it is, so it may stand before it: every position has a projection of its own.

    Args:
        norm: the library's, or None. Its weights are not applied, but `gain` is: float32 [head_dim].
        angles: float32 [tokens, head_dim / 2], position times frequency.
        before: the library's norm before the projection, whose weights it takes over.
    """

    def __init__(
        self, module: Any, norm: Any | None, angles: torch.Tensor, heads: tuple[int, int], place: Place,
        before: Any, gain: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self._heads, self._gain = heads, gain
        weight = (place.exact(module.weight) * place.gain(before)).T.reshape(-1, *heads)  # [E, heads, head_dim]
        cos, sin = (torch.cat([part, part], dim=-1)[:, None, None] for part in (angles.cos(), angles.sin()))
        first, second = weight.chunk(2, dim=-1)
        turned = weight * cos + torch.cat([-second, first], dim=-1) * sin
        # [tokens, E, heads head_dim]
        self._weights = turned.flatten(2).to(place.weight_dtype(module.weight)).contiguous()
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
    """`attend` to one context on a CPU in float32, by `attend_tiled`."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, is_bounded: bool) -> None:
        self._keys, self._values = keys.flatten(0, 1).transpose(1, 2).contiguous(), values.flatten(0, 1)
        self._is_bounded = is_bounded

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        folded = queries.float().flatten(0, 1)
        return attend_tiled(folded, self._keys, self._values, is_bounded=self._is_bounded).view_as(queries)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """`F.gelu`, which on a CPU sets up a oneDNN primitive: of few numbers half of its time goes there."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() > _FEW_NUMBERS:
        return F.gelu(x)
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
