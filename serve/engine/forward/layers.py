"""The layers that test-only forwards are made of: packed products, float32 norms, attention to a fixed context.

Attention never holds its scores (`scaled_dot_product_attention` works tile by tile on every device; measured on a CPU
it is as fast as two batched products for one row, and 2.4 times as fast for 256), and takes its scale from the queries,
into which it was multiplied once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

_PACKED_CELLS = 1 << 18
"""Weights from this size on are packed for oneDNN on a CPU: 0.6 of the time of `F.linear` at 8 rows, 0.75 at 256."""

MAX_CUDA_GRID = 65_535
"""CUDA's largest grid axis, over which attention kernels lay batch x heads (pytorch issue 142228)."""


@dataclass(frozen=True)
class Place:
    """Where and how precisely to compute: weights, keys and values in `dtype`."""

    device: torch.device
    dtype: torch.dtype

    @property
    def attention_dtype(self) -> torch.dtype:
        # Scores pass the range of float16, in which a CPU's kernels keep them; the library widens there too.
        return torch.float32 if self.device.type == "cpu" and self.dtype == torch.float16 else self.dtype

    def exact(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach().to(self.device, torch.float32)

    def stack(self, caches: Sequence[Any], field: Callable[[Any], torch.Tensor], dim: int = 0) -> torch.Tensor:
        """One field of all caches in float32, members end to end."""
        return torch.cat([self.exact(field(cache)) for cache in caches], dim=dim)

    def norm(self, module: Any, scale: float = 1.0) -> Norm:
        return Norm(self.exact(module.weight) * scale, module.eps)

    def linear(self, module: Any, heads: tuple[int, int] | None = None) -> Linear:
        return Linear(module, self, heads)

    def exact_linear(self, module: Any, heads: tuple[int, int] | None = None) -> Linear:
        return Linear(module, Place(self.device, torch.float32), heads)

    def by_head(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, heads, head_dim] to contiguous [batch, heads, length, head_dim], as attention takes it."""
        return x.transpose(1, 2).to(self.device, self.attention_dtype).contiguous()


class Linear:
    """x W^T + b in the place's dtype, from a `torch.nn.Linear`; `heads` (number, width) splits its last axis."""

    def __init__(self, module: Any, place: Place, heads: tuple[int, int] | None) -> None:
        self._dtype, self._heads = place.dtype, heads
        self._weight = module.weight.detach().to(place.device, place.dtype)
        self._bias = None if module.bias is None else module.bias.detach().to(place.device, place.dtype)
        self.packed = (
            place.device.type == "cpu"
            and place.dtype in (torch.float32, torch.bfloat16)
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


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm over the last axis, in float32."""

    weight: torch.Tensor
    eps: float | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class FeedForward:
    """x + W2 gelu(W1 norm(x)); x stays in float32."""

    def __init__(self, norm: Any, mlp: Any, place: Place) -> None:
        self._norm, self._up, self._down = place.norm(norm), place.linear(mlp[0]), place.linear(mlp[2])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + self._down(F.gelu(self._up(self._norm(x))))


class LengthScale:
    """Queries times what `SoftmaxScalingMLP` makes of them and of the context's length, and times head_dim ** -0.5."""

    def __init__(self, module: Any | None, num_heads: int, head_dim: int, length: int, place: Place) -> None:
        base = torch.ones(num_heads * head_dim, device=place.device)
        self._query = None
        if module is not None:
            first, second = (place.exact_linear(module.base_mlp[i]) for i in (0, 2))
            log_length = torch.full((1, 1), max(length, 1), dtype=torch.float32, device=place.device).log()
            base = second(F.gelu(first(log_length)))
            self._query = [place.exact_linear(module.query_mlp[i]) for i in (0, 2)]
        self._base = base.view(num_heads, head_dim) * float(head_dim**-0.5)

    def __call__(self, queries: torch.Tensor) -> torch.Tensor:
        """float32 [..., heads, head_dim] to the same."""
        scaled = queries * self._base
        if self._query is None:
            return scaled
        first, second = self._query
        return torch.addcmul(scaled, scaled, torch.tanh(second(F.gelu(first(queries)))))


class Rotation:
    """Rotary embedding, then RMS norm: a rotation leaves the norm as it is, so the norm's weights join the tables.

    Args:
        norm: the library's; `scale` multiplies its weights.
        angles: float32 [tokens, head_dim / 2], position times frequency.
    """

    def __init__(self, norm: Any, angles: torch.Tensor, scale: float, place: Place) -> None:
        self._norm = Norm(torch.ones_like(place.exact(norm.weight)), norm.eps)
        weight, sign = place.exact(norm.weight) * scale, torch.ones_like(angles)
        self._cos = (torch.cat([angles, angles], dim=-1).cos() * weight)[:, None]
        self._sin = (torch.cat([angles, angles], dim=-1).sin() * torch.cat([-sign, sign], dim=-1) * weight)[:, None]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B R, tokens, heads, head_dim] to float32."""
        x = self._norm(x)
        return torch.addcmul(x * self._cos, x.roll(x.shape[-1] // 2, dims=-1), self._sin)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """softmax(queries keys^T) values over [batch, heads, length, head_dim], in the values' dtype."""
    queries = queries.to(values.dtype)
    step = max(1, MAX_CUDA_GRID // queries.shape[1])
    if queries.device.type == "cpu" or queries.shape[0] <= step:
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    slices = [slice(start, start + step) for start in range(0, queries.shape[0], step)]
    return torch.cat([F.scaled_dot_product_attention(queries[i], keys[i], values[i], scale=1.0) for i in slices])
