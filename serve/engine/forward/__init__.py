"""Our own test-only forward passes, one file per TabPFN architecture.

Each computes what the library's network computes for test rows given a KV cache, from the same weights, for every
member of one cache group at once. What the library decides anew in each call (constants of the decoder, of attention
scaling, of the labels; layouts; casts) is decided once, when the forward is built. None of them asks the device for a
value, so that a call can be recorded as a CUDA graph.

An architecture without a file here is served by the library's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class Forward(Protocol):
    """Test rows of one cache group to logits."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits of test rows; each row's depend on that row and the cache alone.

        Args:
            rows: float32 [members, rows, width], every member's preprocessed rows, on the cache's device.

        Returns:
            float32 [members, rows, outputs]: class logits up to `max_num_classes`, or the regressor's bar logits, with
            the class order of each member's own permutation.
        """
        ...


Builder = Callable[[torch.nn.Module, Sequence[Any], torch.Tensor, str, torch.dtype], Forward]
"""`build(network, caches, targets, task_type, dtype)`.

`network` is tabpfn's own module; `caches` its KV caches, whose batch axes laid end to end hold the members; `targets`
float32 [members, context rows] as the network was given them; `task_type` is "multiclass" or "regression"; `dtype` is
the precision of weights, keys and values (sums, norms and softmax stay in float32).
"""
