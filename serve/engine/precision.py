"""Which number format a forward pass runs in."""

from __future__ import annotations

import torch
from tabpfn.utils import infer_autocast_inference_mode

_NAMED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LARGE_PARAMETERS = 4_000_000
"""A CPU gains from bfloat16 where reading weights and KV cache is most of the work: v2 has 7 million parameters (one
row is 1.8 times faster), the demo checkpoint 0.9 million, which lie in the processor's cache either way."""


def forward_dtype(precision: str, device: torch.device, num_parameters: int) -> torch.dtype:
    """The dtype of weights, keys and values for the setting `inference_precision` on a device.

    "auto" on a GPU is bfloat16 where the hardware multiplies it (compute capability 8.0, Ampere, and later), else
    float16: a T4 or V100 only emulates bfloat16. On a CPU it is bfloat16 for a network of `LARGE_PARAMETERS` or
    more, if the processor multiplies it (by tabpfn's own test, with which it decides to autocast), else float32.
    """
    if precision != "auto":
        return _NAMED[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    is_fast = infer_autocast_inference_mode([device], enable=None)
    return torch.bfloat16 if is_fast and num_parameters >= LARGE_PARAMETERS else torch.float32
