"""Our own test-only forward passes, one file per TabPFN architecture (v2.6 runs by v2_5.py), and what they share.

Each computes what the library's network computes for test rows given a KV cache, from the same weights, for every
member of one cache group at once. What the library decides anew in each call (constants of the decoder, of attention
scaling, of the labels; layouts; casts) is decided once, when the forward is built. None of them asks the device for a
value, so that a call can be recorded as a CUDA graph.

An architecture without a file here is served by the library's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Forward(Protocol):
    """Test rows of one cache group to logits."""

    def __call__(self, rows: torch.Tensor, /) -> torch.Tensor:
        """Logits of test rows; each row's depend on that row and the cache alone.

        Args:
            rows: float32 [members, rows, width], every member's preprocessed rows, on the cache's device.

        Returns:
            float32 [members, rows, outputs]: class logits up to `max_num_classes`, or the regressor's bar logits, with
            the class order of each member's own permutation.
        """
        ...


class Builder(Protocol):
    """`build` of every architecture's file."""

    def __call__(
        self,
        network: torch.nn.Module,
        caches: Sequence[Any],
        targets: torch.Tensor,
        task_type: str,
        dtype: torch.dtype,
        kv_dtype: torch.dtype | None = None,
        columns: torch.Tensor | None = None,
    ) -> Forward:
        """The forward of one cache group.

        Args:
            network: tabpfn's own module.
            caches: its KV caches, whose batch axes laid end to end hold the members.
            targets: float32 [members, context rows] as the network was given them.
            task_type: "multiclass" or "regression".
            dtype: precision of the weights (sums, norms and softmax stay in float32).
            kv_dtype: of the cached keys and values, and of attention to them; None takes `dtype`.
            columns: int64 [members, width]; columns of one number hold the same values whatever the rows, so a forward
                may compute them once. None: none are known to.
        """
        ...


@dataclass(frozen=True)
class Group:
    """A cache group of a network whose later stages are as wide for any table; see `Builder` for what these are."""

    caches: Sequence[Any]
    targets: torch.Tensor
    columns: torch.Tensor | None = None


class JoinedForward(Protocol):
    """Test rows of several cache groups, as many of each, to the logits of all their members, groups end to end."""

    def __call__(self, *rows: torch.Tensor) -> torch.Tensor: ...


class JoinedBuilder(Protocol):
    """`build_joined` of the architectures that can: groups pass together where their width no longer tells them apart,
    so that the weights of these stages are read once a call."""

    def __call__(
        self,
        network: torch.nn.Module,
        groups: Sequence[Group],
        task_type: str,
        dtype: torch.dtype,
        kv_dtype: torch.dtype | None = None,
    ) -> JoinedForward:
        """The forward of groups of one network with as many context rows each."""
        ...
