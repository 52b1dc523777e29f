"""Our own test-only forward passes, one file per TabPFN architecture (v2.6 runs by v2_5.py), and what they share.

Each computes what the library's network computes for test rows given a KV cache, from the same weights, for many
members at once. What the library decides anew in each call (constants of the decoder, of attention
scaling, of the labels; layouts; casts) is decided once, when the forward is built. None of them asks the device for a
value, so that a call can be recorded as a CUDA graph.

An architecture without a file here is served by the library's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Group:
    """Members of equal width.

    Attributes:
        caches: the library's KV caches, whose batch axes laid end to end hold the members.
        targets: float32 [members, context rows] as the network was given them.
        columns: int64 [members, width]; columns of one number hold the same values whatever the rows, so a forward may
            compute them once. None: none are known to.
    """

    caches: Sequence[Any]
    targets: torch.Tensor
    columns: torch.Tensor | None = None


class Forward(Protocol):
    """Test rows of one or more groups to logits."""

    def __call__(self, *rows: torch.Tensor) -> torch.Tensor:
        """Logits of test rows; each row's depend on that row and the cache alone.

        Args:
            rows: of each group, float32 [members, rows, width], every member's preprocessed rows, on the cache's
                device; as many of each.

        Returns:
            float32 [members, rows, outputs], groups end to end: class logits up to `max_num_classes`, or the
            regressor's bar logits, with the class order of each member's own permutation.
        """
        ...


class Builder(Protocol):
    """`build` of every architecture's file."""

    def __call__(
        self,
        network: torch.nn.Module,
        groups: Sequence[Group],
        task_type: str,
        dtype: torch.dtype,
        kv_dtype: torch.dtype | None = None,
    ) -> Forward:
        """The forward of groups with as many context rows each. They pass together where width no longer tells them
        apart, so that the weights of these stages are read once a call.

        Args:
            network: tabpfn's own module.
            task_type: "multiclass" or "regression".
            dtype: precision of the weights (sums, norms and softmax stay in float32).
            kv_dtype: of the cached keys and values, and of attention to them; None takes `dtype`.
        """
        ...
