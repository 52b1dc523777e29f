"""Matrix products and the functions behind them, by the kernel that is fastest on the device.

Three kernels multiply: torch's own, oneDNN on weights as they are, and oneDNN on packed weights. The shapes and the
processor decide between them, never a value.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from serve.engine.forward.exact_sums import add_product, has_exact_sums, multiply
from serve.engine.forward.processor import has_amx

_PACKED_CELLS = 1 << 18
"""On a CPU a matrix of at least so many weights is packed for oneDNN. It takes 0.6 of the time of `F.linear` at 8 rows,
0.75 at 256."""

_MANY_PRODUCTS = 1 << 23
"""From so many multiplications on, a CPU without AMX is faster by oneDNN even with weights that are not packed. torch
gives float32 products to MKL, which serves Intel's processors best (4,096 rows, 192 to 768 wide: 11.4 ms by oneDNN
against 12.8; with a GELU 12.7 against 14). With fewer multiplications oneDNN's set-up costs more than it gains (1,000
rows, 64 to 32 wide: 0.055 ms against 0.048)."""

_FEW_NUMBERS = 1 << 12
"""Up to so many numbers, `gelu` by plain operations is faster on a CPU: 4 us against 9 for 2,000; 50 against 31 for
65,000."""


class Product:
    """x W^T (+ b), in the dtype of W [out, in]: x [..., in] to [..., out]."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._dtype = weight.dtype
        has_onednn = (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )
        self.packed = has_onednn and weight.numel() >= _PACKED_CELLS
        self._min_numbers = _MANY_PRODUCTS // weight.shape[0] if has_onednn and not has_amx() else None
        self._is_exact = has_exact_sums(weight.device, weight.dtype)
        weight = weight.contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        x = x.to(self._dtype)
        if not self._is_by_onednn(x):
            return F.linear(x, self.weight, bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return product

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T in float32; the kernel's sums are not rounded where it can give them out."""
        if not self._is_exact:
            return self(x).float()
        return multiply(self._flat(x), self.weight).view(*x.shape[:-1], -1)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Adds x W^T to `total`, float32 and contiguous [..., out], in place."""
        flat_total = total.view(-1, total.shape[-1])
        if self._is_exact:
            add_product(flat_total, self._flat(x), self.weight)
        elif self.packed or self._dtype != torch.float32:
            total.add_(self(x))
        else:
            flat_total.addmm_(self._flat(x), self.weight.t())
        return total

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, x.shape[-1]).to(self._dtype)

    def gelu(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """gelu(x W^T (+ b)); oneDNN applies the function to numbers that are still in its cache."""
        if not self._is_by_onednn(x):
            return gelu(self(x, bias))
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._dtype), self.weight, bias, "gelu", [], "none"
        )
        return product

    def _is_by_onednn(self, x: torch.Tensor) -> bool:
        return self.packed or (self._min_numbers is not None and x.numel() >= self._min_numbers)


def multiply_to(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x y in a number format. A GPU computes in float32 and rounds once, in one kernel."""
    if dtype == x.dtype:
        return x * y
    return torch.mul(x, y, out=x.new_empty(x.shape, dtype=dtype))


def add_tanh(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """x (1 + tanh(y)); it may overwrite both. Another `dtype` than float32 is for a GPU, as in `multiply_to`.

    1 + tanh(y) is 2 sigmoid(2 y), for which torch has its own vector code on a CPU (192,000 numbers on an AMD EPYC take
    0.08 ms, and 0.49 ms by MKL's tanh).
    """
    if x.device.type != "cpu" or x.numel() <= _FEW_NUMBERS:
        if dtype == x.dtype:
            return torch.addcmul(x, x, torch.tanh(y))
        return torch.addcmul(x, x, torch.tanh(y), out=x.new_empty(x.shape, dtype=dtype))
    return y.mul_(2).sigmoid_().mul_(2).mul_(x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """As `F.gelu`; it may overwrite x.

    On a CPU `F.gelu` sets up a oneDNN primitive, which takes half of its time for few numbers.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() > _FEW_NUMBERS:
        activated: torch.Tensor = torch.ops.aten.gelu_(x)
        return activated
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(x).mul_(0.5)
