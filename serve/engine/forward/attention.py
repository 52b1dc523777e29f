"""Attention on a CPU by batched products. torch's fused kernel saves memory, but loses more time in its loops.

Measured on one core (AVX-512), as a share of the time of `scaled_dot_product_attention`: 4 queries to 1,200 keys 0.8,
128 queries 0.9, 448 queries 0.6. For the tokens of one table row, attending to each other, it is half or less, because
the fused kernel starts anew for every row and head.

Exponentials are powers of two; the keys hold the factor that makes them so. torch computes `exp2` by its own vector
code, but `exp` by MKL's, which takes a slow path on processors that are not Intel's. For 192,000 numbers on an AMD EPYC
`exp2` takes 0.055 ms, `exp` 0.158 ms and a softmax 0.116 ms.

A softmax stays the same when a constant is subtracted from its scores; normally the largest score is subtracted, so
that no exponential overflows. Where queries and keys were normed, the weights alone give a bound of the scores. If the
bound is small enough, `exp2` is applied to the scores as they are: one pass over the scores in place of four. The bound
holds for any input, so a call never looks at values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from serve.engine.forward.processor import has_amx

MAX_EXP_SCORE = 60.0
"""exp(60) times a million keys is still within float32, and exp(-60) is a normal float32."""

BITS = 1 / math.log(2)
"""exp(x) = exp2(BITS * x)."""

_TILE_BYTES = 2**20 if has_amx() else 2**21
"""Scores per thread and tile: few enough to stay in the core's cache until they are used. On an AMD EPYC a call of 32
rows takes 3 to 4 % less time with 2 MiB than with 1 MiB, and 6 to 17 % more with less than 1 MiB."""


def attend_tiled(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, is_bounded: bool = False
) -> torch.Tensor:
    """softmax(queries keys) values [batch, queries, D], tile by tile, so that few scores are held at a time.

    Args:
        queries: [batch, queries, D].
        keys: [batch, D, context], multiplied by `BITS`, in the memory order that is fastest for the kernel.
        values: [batch, context, D].
        is_bounded: whether no score can exceed `MAX_EXP_SCORE`, for any queries.
    """
    mixed = queries.new_empty(*queries.shape[:2], values.shape[2])
    if queries.dtype != torch.float32 and not is_bounded:
        # For 16-bit numbers torch's softmax beats separate passes: 0.126 ms against 0.19 for 192,000.
        for batch, rows, tile in _score_tiles(queries, keys, 1 / BITS):
            torch.bmm(torch.softmax(tile, dim=-1, out=tile), values[batch], out=mixed[batch, rows])
        return mixed
    # torch sums in float32 and rounds the sum once to the scores' dtype, which is also the dtype of what it divides.
    # With a dtype argument torch would first copy the scores (0.12 ms against 0.06 for 960,000 in bfloat16).
    sums = queries.new_empty(*queries.shape[:2], 1)
    for batch, rows, tile in _score_tiles(queries, keys):
        torch.sum(_exponentiate(tile, is_bounded), dim=-1, keepdim=True, out=sums[batch, rows])
        torch.bmm(tile, values[batch], out=mixed[batch, rows])
    return mixed.div_(sums)


def count_votes(queries: torch.Tensor, keys: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
    """As `attend_tiled`, for few values per key: the shares [batch, values, queries].

    The values stand in rows, because a product with two columns takes as long as one with twenty, but one with two rows
    does not.

    Args:
        votes: [batch, values, context]; the last value is 1 everywhere.
    """
    counts = queries.new_empty(queries.shape[0], votes.shape[1], queries.shape[1])
    for batch, rows, tile in _score_tiles(queries, keys):
        torch.bmm(votes[batch], _exponentiate(tile, is_bounded=False).transpose(1, 2), out=counts[batch, :, rows])
    return counts.div_(counts[:, -1:].clone())


def _exponentiate(scores: torch.Tensor, is_bounded: bool) -> torch.Tensor:
    """exp2(scores) in place, up to a factor that all scores of a query share."""
    if not is_bounded:
        # Clamped scores vanish in the sum; unclamped they would be subnormal numbers, which slow the product down.
        scores.sub_(scores.amax(-1, keepdim=True)).clamp_(min=-MAX_EXP_SCORE * BITS)
    return scores.exp2_()


def _score_tiles(
    queries: torch.Tensor, keys: torch.Tensor, scale: float = 1.0
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yields slices of batch and queries with their scores times `scale`; a tile is valid until the next one."""
    num_batch, num_queries, _ = queries.shape
    budget = torch.get_num_threads() * _TILE_BYTES // (keys.shape[2] * queries.element_size())
    batch = min(max(1, budget // num_queries), num_batch)
    per_tile = min(max(1, budget), num_queries)
    scores = queries.new_empty(batch * per_tile * keys.shape[2])
    for first in range(0, num_batch, batch):
        here = slice(first, first + batch)
        for start in range(0, num_queries, per_tile):
            rows = slice(start, start + per_tile)
            part = queries[here, rows]
            tile = scores[: part.shape[0] * part.shape[1] * keys.shape[2]].view(*part.shape[:2], -1)
            if scale == 1:  # a product without a factor takes 7 % less time
                torch.bmm(part, keys[here], out=tile)
            else:
                tile.baddbmm_(part, keys[here], beta=0, alpha=scale)
            yield here, rows, tile


def attend_tokens(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float = 1.0,
    is_bounded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """softmax(scale queries keys^T) values, for very many short sequences.

    Args:
        queries, keys, values: [tokens, rows, heads, D]; a sequence is one row and head.
        is_bounded: whether no scaled score can exceed `MAX_EXP_SCORE`.
        dtype: number format of the computation and of the answer.
    """
    num_queries, num_rows, num_heads, _ = queries.shape
    queries, keys, values = (_by_sequence(x, dtype) for x in (queries, keys, values))
    unread = queries.new_empty(1)  # beta is 0, so torch does not read it
    alpha = scale * BITS if is_bounded else scale
    scores = torch.baddbmm(unread, queries, keys.transpose(1, 2), beta=0, alpha=alpha)
    if is_bounded:
        scores.exp2_()
        mixed = torch.bmm(scores, values).div_(scores.sum(-1, keepdim=True))
    else:
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
    return mixed.view(num_rows, num_heads, num_queries, -1).permute(2, 0, 1, 3)


def _by_sequence(tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[tokens, rows, heads, D] to [rows * heads, tokens, D] in a dtype, in one pass over memory."""
    moved = tokens.permute(1, 2, 0, 3)
    return moved.new_empty(moved.shape, dtype=dtype).copy_(moved).flatten(0, 1)
