"""What the pretend device knows of torch's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

aten = torch.ops.aten

_WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.is_nonzero.default, aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default, aten.bincount.default,
}  # fmt: skip
"""Operators whose answer, or its shape, the host has to know."""

_WITHOUT_KERNEL = {
    aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default, aten.new_empty_strided.default,
    aten.empty_like.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.lift_fresh.default,
}  # fmt: skip
"""Operators that are no views, and launch nothing all the same."""

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_")

_BY_INDEX = ("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")


@dataclass(frozen=True)
class Operator:
    """Facts of an operator.

    Attributes:
        compute: what computes it on the CPU.
        is_composite: it is written by other operators.
        is_view: its answer shares the memory of an operand.
        launches: it has a kernel.
        waits: the host waits for its answer.
        by_index: it takes tensors that index another, which may be on the host.
        is_product: it multiplies matrices.
    """

    name: str
    compute: Callable[..., Any]
    is_composite: bool
    is_view: bool
    launches: bool
    waits: bool
    by_index: bool
    is_product: bool


@cache
def describe(func: Any) -> Operator:
    """The facts of an operator."""
    schema = func._schema
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    is_view = not writes and any(r.alias_info is not None for r in schema.returns)
    answers = any("Tensor" in str(r.type) for r in schema.returns)
    return Operator(
        name=str(func),
        compute=_STAND_INS.get(func, func),
        is_composite=torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"),
        is_view=is_view,
        launches=(answers or writes) and not is_view and func not in _WITHOUT_KERNEL,
        waits=func in _WAITING,
        by_index=str(func).startswith(_BY_INDEX),
        is_product=schema.name in _PRODUCTS,
    )


def count_flops(args: Any, out: torch.Tensor) -> int:
    """Of a product: its matrices are the last two tensors of its positional arguments."""
    first, _ = [x for x in args if isinstance(x, torch.Tensor)][-2:]
    return 2 * out.numel() * first.shape[-1]


def _widen(product: Callable[..., torch.Tensor], is_added: bool) -> Callable[..., torch.Tensor]:
    """A product whose sums leave it in a wider dtype, for which only CUDA has kernels."""

    def compute(*args: Any, beta: float = 1, alpha: float = 1, out: torch.Tensor | None = None) -> torch.Tensor:
        *tensors, dtype = args
        scales = {"beta": beta, "alpha": alpha} if is_added else {}
        answer = product(*(x.to(dtype) for x in tensors), **scales)
        return answer if out is None else out.copy_(answer)

    return compute


_STAND_INS: dict[Any, Callable[..., torch.Tensor]] = {
    aten.mm.dtype: _widen(aten.mm.default, False),
    aten.bmm.dtype: _widen(aten.bmm.default, False),
    aten.addmm.dtype: _widen(aten.addmm.default, True),
    aten.addmm.dtype_out: _widen(aten.addmm.default, True),
    aten.baddbmm.dtype: _widen(aten.baddbmm.default, True),
}
"""What computes operators that a CPU has no kernel for."""


def leaves(x: Any) -> Iterator[Any]:
    """What nested lists, tuples and dictionaries hold. torch's own walk takes ten times as long."""
    if isinstance(x, list | tuple):
        for part in x:
            yield from leaves(part)
    elif isinstance(x, dict):
        for part in x.values():
            yield from leaves(part)
    else:
        yield x


def replace_leaves(x: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting with each leaf changed."""
    if isinstance(x, list | tuple):
        changed = [replace_leaves(part, change) for part in x]
        return tuple(changed) if isinstance(x, tuple) else changed
    if isinstance(x, dict):
        return {name: replace_leaves(part, change) for name, part in x.items()}
    return change(x)
