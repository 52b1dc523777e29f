"""Attention on the pretend device: one fused kernel, chosen as torch 2.13 chooses it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pretend_cuda.device import PretendDevice
from pretend_cuda.tensors import PretendTensor

_attend = F.scaled_dot_product_attention

_MAX_GRID = 65_535
"""CUDA's largest grid axis, along which the kernels place batch x heads (pytorch issue 142228)."""


def choose_kernel(query: torch.Tensor, capability: tuple[int, int]) -> str:
    """ "cudnn", "flash", "efficient" or "math"."""
    is_16_bit = query.dtype in (torch.float16, torch.bfloat16)
    if query.dtype == torch.bfloat16 and capability < (8, 0):
        return "math"
    if is_16_bit and capability >= (9, 0) and torch.backends.cuda.cudnn_sdp_enabled():
        return "cudnn"
    return "flash" if is_16_bit and capability >= (8, 0) else "efficient"


def scaled_dot_product_attention(
    device: PretendDevice, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` where the operands may be on the device."""
    operands = (query, key, value)
    if not isinstance(query, PretendTensor):
        return _attend(query, key, value, *args, **options)
    if len({x.dtype for x in operands}) > 1 or len({x.device for x in operands}) > 1:
        raise RuntimeError("attention: expected operands of one device and one dtype")
    if query.shape[0] * query.shape[1] > _MAX_GRID:
        raise torch.AcceleratorError("CUDA error: invalid configuration argument")
    numbers = [x.numbers for x in operands]  # type: ignore[attr-defined]

    def run() -> torch.Tensor:
        return _attend(*numbers, *args, **options)

    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        out = run()
    kernel = choose_kernel(query, device.capability)
    device.attentions.append(kernel)
    flops = 2 * (query.numel() + out.numel()) * key.shape[-2]
    device.launch(f"attention by {kernel}", numbers, [out], query.gpu, flops)
    device.record(query.gpu, run, [out])
    return PretendTensor(out, query.gpu)
