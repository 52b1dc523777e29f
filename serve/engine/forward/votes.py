"""The classification head of v3 and v3.5: a test row attends to context rows, and their labels vote for its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from serve.engine.forward.attention import BITS, count_votes
from serve.engine.forward.layers import ComputeSpec, LengthScale

MAX_SCORES = 1 << 26
"""Most attention scores held at a time on a GPU: 256 MiB. The other attentions hold only tiles of theirs."""


class Votes:
    """Class logits by attention of test rows to the context's labels (`ManyClassDecoder`), in float32.

    Raises ValueError where the caches are a regressor's, or hold a label beyond the network's classes.
    """

    def __init__(self, decoder: Any, caches: Sequence[Any], targets: torch.Tensor, spec: ComputeSpec) -> None:
        if any(cache.decoder_keys is None for cache in caches):
            raise ValueError("these KV caches have no decoder keys: they were built for regression, not classification")
        keys = spec.stack(caches, lambda cache: cache.decoder_keys)
        self._is_on_cpu = spec.device.type == "cpu"
        keys_scale = BITS if self._is_on_cpu else 1.0
        self._keys = (keys.permute(0, 2, 3, 1).flatten(0, 1) * keys_scale).contiguous()
        labels = spec.exact(targets)
        # A label that is not finite takes part in the softmax, but votes for no class.
        classes = torch.where(labels.isfinite(), labels, -1).long()
        num_classes = max(1, int(classes.max()) + 1)
        self._num_absent = decoder.max_num_classes - num_classes
        if self._num_absent < 0:
            raise ValueError(f"label {num_classes - 1}, but the network has only {decoder.max_num_classes} classes")
        votes = (classes[..., None] == torch.arange(num_classes, device=spec.device)).float() / decoder.num_heads
        self._votes = votes.repeat_interleave(decoder.num_heads, 0)
        # With one more value that counts every vote, so that shares are quotients.
        self._counted = F.pad(self._votes.transpose(1, 2), (0, 0, 0, 1), value=1.0).contiguous()
        heads = (decoder.num_heads, decoder.head_dim)
        self._query = spec.exact_linear(decoder.q_projection, heads)
        self._scale = LengthScale(decoder.softmax_scaling_layer, *heads, keys.shape[1], spec)
        self._max_rows = max(1, MAX_SCORES // (keys.shape[0] * decoder.num_heads * keys.shape[1]))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, R, T E] to logits float32 [B, R, max_num_classes]."""
        queries = self._scale(self._query(x)).transpose(1, 2)
        if self._is_on_cpu:
            shares = count_votes(queries.flatten(0, 1), self._keys, self._counted)[:, :-1].transpose(1, 2)
        else:
            parts = torch.split(queries.flatten(0, 1), self._max_rows, dim=1)
            shares = torch.cat([torch.bmm(torch.softmax(part @ self._keys, -1), self._votes) for part in parts], dim=1)
        shares = shares.view(*queries.shape[:3], -1).sum(1)
        # tabpfn's floors of a share, and of a class without context rows.
        return torch.log(F.pad(shares, (0, self._num_absent)).clamp(min=1e-5) + 3e-5)
