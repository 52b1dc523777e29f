"""Which number formats a forward pass runs in: one for weights, one for cached keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tabpfn.utils import infer_autocast_inference_mode

_NAMED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LARGE_PARAMETERS = 4_000_000
"""A CPU gains from bfloat16 weights where reading them is much of the work: v2 has 7 million parameters (one row is 1.8
times faster), the demo checkpoint 0.9 million, which lie in the processor's cache either way."""


@dataclass(frozen=True)
class Precision:
    """Of one forward; sums, norms and softmax are float32 in any."""

    weights: torch.dtype
    kv_cache: torch.dtype


def resolve_precision(weights: str, kv_cache: str, device: torch.device, num_parameters: int) -> Precision:
    """What the settings `inference_precision` and `kv_cache_precision` mean on a device.

    "auto" on a GPU is bfloat16 where the hardware multiplies it (compute capability 8.0, Ampere, and later), else
    float16: a T4 or V100 only emulates bfloat16. On a CPU it is bfloat16 if the processor multiplies it (by tabpfn's
    own test, with which it decides to autocast), else float32; weights of less than `LARGE_PARAMETERS` stay in float32.
    A KV cache in "auto" follows named weights.
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
