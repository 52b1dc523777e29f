"""Compiled test-only forward passes: one file per TabPFN architecture (v2_5.py also runs v2.6), and their shared parts.

Each file computes what tabpfn's network computes for test rows given a KV cache: from the same weights, and for many
members at once. What tabpfn decides anew in each call is decided once, when the forward pass is built: constants of
the decoder, of attention scaling and of the labels, layouts, casts. A forward pass never asks the device for a value,
so a call can be recorded as a CUDA graph.

An architecture without a file here is answered by tabpfn's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Group:
    """Members whose prepared rows have the same width.

    Attributes:
        caches: tabpfn's KV caches; their batch axes, joined in order, hold the members.
        targets: float32 [members, context rows], as given to the network.
        columns: int64 [members, width]. Columns of one number hold the same values for any rows, so a forward pass may
            compute them once. None where no columns are known to be equal.
    """

    caches: Sequence[Any]
    targets: torch.Tensor
    columns: torch.Tensor | None = None


class Forward(Protocol):
    """Takes the test rows of one or more groups to logits."""

    def __call__(self, *rows: torch.Tensor) -> torch.Tensor:
        """Logits of test rows. A row's logits depend on that row and the cache alone.

        Args:
            rows: one tensor per group, with equal numbers of rows: float32 [members, rows, width], every member's
                preprocessed rows, on the cache's device.

        Returns:
            float32 [members, rows, outputs], the members of all groups in order: class logits up to `max_num_classes`
            in the class order of the member's own permutation, or the regressor's bar logits.
        """
        ...


class Builder(Protocol):
    """The function `build` of every architecture's file."""

    def __call__(
        self,
        network: torch.nn.Module,
        groups: Sequence[Group],
        task_type: str,
        dtype: torch.dtype,
        kv_dtype: torch.dtype | None = None,
    ) -> Forward:
        """The forward pass of groups with equal numbers of context rows.

        The groups run together in the stages that do not depend on width, so a call reads their weights once.

        Args:
            network: tabpfn's module.
            task_type: "multiclass" or "regression".
            dtype: number format of the weights; sums, norms and softmax stay in float32.
            kv_dtype: number format of the cached keys and values and of attention to them; None takes `dtype`.
        """
        ...
