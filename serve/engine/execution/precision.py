"""The number formats of a forward pass: one for its weights, one for cached keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tabpfn.utils import infer_autocast_inference_mode

_NAMED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LARGE_PARAMETERS = 4_000_000
"""A CPU gains from bfloat16 weights where reading them is much of the work. v2 has 7 million parameters, and one row is
1.8 times faster; the demo checkpoint has 0.9 million, which fit into the processor's cache in any format."""


@dataclass(frozen=True)
class Precision:
    """Number formats of one forward pass. Sums, norms and softmax are float32 whatever they are."""

    weights: torch.dtype
    kv_cache: torch.dtype


def resolve_precision(weights: str, kv_cache: str, device: torch.device, num_parameters: int) -> Precision:
    """The formats that the settings `chosen_precision` and `kv_cache_precision` mean on a device.

    "auto" on a GPU is bfloat16 where the hardware multiplies it (compute capability 8.0, Ampere, and later), else
    float16, because a T4 or V100 only emulates bfloat16. On a CPU "auto" is bfloat16 if the processor multiplies it, by
    the test with which tabpfn decides to autocast, else float32. Networks of fewer than `LARGE_PARAMETERS` parameters
    keep float32 weights there. A KV cache in "auto" takes the format of the weights where that is named.

    Args:
        weights, kv_cache: "float32", "bfloat16", "float16" or "auto".
        num_parameters: of the checkpoint.
    """
    if weights == "auto":
        native = _native_dtype(device)
        is_small = device.type == "cpu" and num_parameters < LARGE_PARAMETERS
        chosen, following = torch.float32 if is_small else native, native
    else:
        chosen = following = _NAMED[weights]
    return Precision(chosen, following if kv_cache == "auto" else _NAMED[kv_cache])


def _native_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if infer_autocast_inference_mode([device], enable=None) else torch.float32
