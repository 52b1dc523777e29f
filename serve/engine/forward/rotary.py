"""Rotary embedding folded into weights: queries and keys of tokens by their position."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from serve.engine.forward.exact_sums import has_exact_sums, multiply_batches
from serve.engine.forward.layers import ComputeSpec
from serve.engine.forward.products import multiply_to


class RotaryProjection:
    """Projection, rotary embedding and RMS norm of tokens by their position.

    The rotation is folded into the weights: every position has a projection of its own. That is exact, because a
    rotation does not change the norm that tabpfn takes before it.

    Args:
        norm: tabpfn's norm behind the projection, or None. Its weights are not applied; `gain` is.
        angles: float32 [tokens, head_dim / 2], position times frequency.
        before: tabpfn's norm in front of the projection, whose weights the projection takes over.
        gain: float32 [head_dim], multiplied into the answer.

    Attributes:
        weights: [tokens, E, heads * head_dim], in the spec's dtype.
        eps: of the norm behind the projection; None without a norm.
        max_length: upper bound of the length of an answer's vectors.
    """

    def __init__(
        self, module: Any, norm: Any | None, angles: torch.Tensor, heads: tuple[int, int], spec: ComputeSpec,
        before: Any, gain: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.heads, self.gain = heads, gain
        weight = (spec.exact(module.weight) * spec.gain(before)).T.reshape(-1, *heads)  # [E, heads, head_dim]
        cos, sin = (torch.cat([part, part], dim=-1)[:, None, None] for part in (angles.cos(), angles.sin()))
        first, second = weight.chunk(2, dim=-1)
        rotated = weight * cos + torch.cat([-second, first], dim=-1) * sin
        self.weights = rotated.flatten(2).to(spec.weight_dtype(module.weight)).contiguous()
        self.eps = None if norm is None else norm.eps or torch.finfo(torch.float32).eps
        largest = 1.0 if gain is None else float(gain.abs().max())
        self.max_length = math.inf if norm is None else math.sqrt(heads[1]) * largest

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, rows, E] to float32 [tokens, rows, heads, head_dim]."""
        product = torch.bmm(x.to(self.weights.dtype), self.weights).float()
        rotated = product.view(*product.shape[:2], *self.heads)
        if self.eps is not None:
            square = torch.linalg.vector_norm(rotated, dim=-1, keepdim=True).square_().mul_(1 / rotated.shape[-1])
            rotated.mul_(square.add_(self.eps).rsqrt_())
        return rotated if self.gain is None else rotated.mul_(self.gain)


class QueriesAndKeys:
    """The queries of the first tokens and the keys of all, with as few kernels on a GPU as one of them takes.

    Args:
        query: the projection of the first `num_queries` tokens, or of all tokens on a GPU.
        key: of all tokens.
        dtype: number format of the answers on a GPU; on a CPU they are float32.
    """

    def __init__(self, query: RotaryProjection, key: RotaryProjection, num_queries: int, dtype: torch.dtype) -> None:
        self._num_queries = num_queries
        self.max_score = query.max_length * key.max_length
        """Upper bound of the product of a query and a key."""
        self._separate: tuple[RotaryProjection, RotaryProjection] | None = None
        if key.weights.device.type == "cpu":
            self._separate = query, key
            return
        assert (query.heads, query.eps) == (key.heads, key.eps), "this is a bug: queries and keys of unlike projections"
        self._heads, self._eps, self._dtype = key.heads, key.eps, dtype
        self._weights = torch.cat([query.weights, key.weights], dim=-1)
        ones = torch.ones(key.heads[1], device=key.weights.device)
        self._gains = torch.stack([ones if part.gain is None else part.gain for part in (query, key)])[:, None]
        self._is_exact = has_exact_sums(self._weights.device, self._weights.dtype)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, rows, E] to [queries, rows, heads, head_dim] and [tokens, rows, heads, head_dim]."""
        if self._separate is not None:
            query, key = self._separate
            return query(x[: self._num_queries]), key(x)
        x = x.to(self._weights.dtype)
        product = multiply_batches(x, self._weights) if self._is_exact else torch.bmm(x, self._weights).float()
        both = product.view(*product.shape[:2], 2, *self._heads)
        if self._eps is not None:
            both = F.rms_norm(both, both.shape[-1:], eps=self._eps)
        queries, keys = multiply_to(both, self._gains, self._dtype).unbind(2)
        return queries[: self._num_queries], keys
