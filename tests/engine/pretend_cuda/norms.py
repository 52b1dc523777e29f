"""RMS norm on the pretend device: one fused kernel, whose sums are float32 in any format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pretend_cuda.device import PretendDevice
from pretend_cuda.tensors import PretendTensor, numbers_of

_norm = F.rms_norm


def rms_norm(
    device: PretendDevice,
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """`F.rms_norm` where the operand may be on the device."""
    if not isinstance(x, PretendTensor):
        return _norm(x, shape, weight, eps)
    if weight is not None and (weight.dtype != x.dtype or weight.device != x.device):
        raise RuntimeError("rms_norm: the fused kernel takes weights of the input's dtype and device")
    numbers, own_weight = x.numbers, None if weight is None else numbers_of(weight)

    def run() -> torch.Tensor:
        wide = None if own_weight is None else own_weight.float()
        return _norm(numbers.float(), shape, wide, eps).to(numbers.dtype)

    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        out = run()
    device.launch("rms_norm", [numbers], [out], x.gpu)
    device.record(x.gpu, run, [out])
    return PretendTensor(out, x.gpu)
