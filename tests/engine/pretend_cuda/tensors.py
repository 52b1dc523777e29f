"""Tensors that say that they are on a GPU, and hold their numbers on the CPU.

The C++ behind some of torch's Python functions needs a CUDA build before any operator is dispatched. Those functions
are written here by operators, which `device.PretendDevice` sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


class PretendTensor(torch.Tensor):
    """A tensor of `cuda:N`.

    Attributes:
        numbers: its numbers, a tensor on the CPU of the same layout.
        gpu: N.
    """

    numbers: torch.Tensor
    gpu: int

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, gpu: int, requires_grad: bool = False) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, layout=numbers.layout, device=torch.device("cuda", gpu), requires_grad=requires_grad,
        )  # fmt: skip
        made.numbers, made.gpu = numbers, gpu
        return made

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"PretendTensor({self.numbers!r}, cuda:{self.gpu})"

    def __deepcopy__(self, memo: object) -> PretendTensor:
        return PretendTensor(self.numbers.clone(), self.gpu, self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} in a thread that did not enter the pretend device")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _BY_OPERATORS.get(func, func)(*args, **(kwargs or {}))


def numbers_of(x: Any) -> Any:
    """The numbers of a tensor on a pretend GPU; anything else as it is."""
    return x.numbers if isinstance(x, PretendTensor) else x


def _getitem(x: torch.Tensor, key: Any) -> torch.Tensor:
    chosen, indices = _view(x, key)
    if any(index is not None for index in indices):
        return aten.index.Tensor(chosen, indices)
    return aten.alias.default(chosen)


def _setitem(x: torch.Tensor, key: Any, value: Any) -> None:
    chosen, indices = _view(x, key)
    has_indices = any(index is not None for index in indices)
    if not isinstance(value, torch.Tensor):
        if not has_indices:
            aten.fill_.Scalar(chosen, value)
            return
        value = torch.tensor(value, dtype=x.dtype)
    if has_indices:
        aten.index_put_.default(chosen, indices, value)
    else:
        aten.copy_.default(chosen, value)


def _view(x: torch.Tensor, key: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """What slices, numbers and None choose of `x`, and for each axis left the tensor that indexes it, or None."""
    dim, indices = 0, []
    for part in _expand_ellipsis(x, key if isinstance(key, tuple) else (key,)):
        if part is None:
            x, indices, dim = x.unsqueeze(dim), [*indices, None], dim + 1
        elif isinstance(part, slice):
            x = aten.slice.Tensor(x, dim, part.start, part.stop, part.step or 1)
            indices, dim = [*indices, None], dim + 1
        elif isinstance(part, int):
            x = aten.select.int(x, dim, part)
        else:
            index = part if isinstance(part, torch.Tensor) else torch.as_tensor(part)
            indices, dim = [*indices, index], dim + _axes_of(index)
    return x, indices


def _expand_ellipsis(x: torch.Tensor, key: tuple[Any, ...]) -> tuple[Any, ...]:
    places = [place for place, part in enumerate(key) if part is Ellipsis]
    if not places:
        return key
    used = sum(_axes_of(part) for part in key if part is not None and part is not Ellipsis)
    return (*key[: places[0]], *[slice(None)] * (x.dim() - used), *key[places[0] + 1 :])


def _axes_of(index: Any) -> int:
    return index.dim() if isinstance(index, torch.Tensor) and index.dtype == torch.bool else 1


def _contiguous(x: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    return x if x.is_contiguous() else aten.clone.default(x, memory_format=memory_format)


def _copy_(to: torch.Tensor, of: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return aten.copy_.default(to, of, non_blocking)


def _nonzero(x: torch.Tensor, *, as_tuple: bool = False) -> Any:
    found = aten.nonzero.default(x)
    return torch.unbind(found, 1) if as_tuple else found


def _scalar(kind: Callable[[Any], Any] = lambda value: value) -> Callable[[torch.Tensor], Any]:
    return lambda x: kind(aten._local_scalar_dense.default(x))


def _filled(value: float) -> Callable[..., torch.Tensor]:
    def make(x: torch.Tensor, *size: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        shape = size[0] if size and not isinstance(size[0], int) else size
        return torch.full(tuple(shape), value, dtype=dtype or x.dtype, device=device or x.device)

    return make


def _new_tensor(x: torch.Tensor, data: Any, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.tensor(data, dtype=dtype or x.dtype, device=x.device)


_BY_OPERATORS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.__setitem__: _setitem,
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.copy_: _copy_,
    torch.Tensor.item: _scalar(),
    torch.Tensor.__float__: _scalar(float),
    torch.Tensor.__int__: _scalar(int),
    torch.Tensor.__bool__: _scalar(bool),
    torch.Tensor.__index__: _scalar(int),
    torch.Tensor.tolist: lambda x: x.to("cpu").tolist(),
    torch.Tensor.nonzero: _nonzero,
    torch.nonzero: _nonzero,
    torch.Tensor.new_zeros: _filled(0.0),
    torch.Tensor.new_ones: _filled(1.0),
    torch.Tensor.new_tensor: _new_tensor,
    torch.Tensor.__invert__: torch.bitwise_not,
    torch.Tensor.record_stream: lambda *_: None,  # memory is not reused here
}
