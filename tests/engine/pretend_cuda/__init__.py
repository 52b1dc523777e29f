"""A CUDA device without a GPU, for a CPU build of torch: real numbers on the CPU, and CUDA's rules checked.

    with pretend_cuda(capability=(9, 0)) as device:
        context = TabPFNEngine(EngineSettings(device="cuda:0")).fit(model)

Every tensor "on cuda:N" wraps one on the CPU, and every operator passes through `device.PretendDevice`. It
- refuses operands on different devices, but for numbers without axes, which a kernel gets by value;
- notes each copy between host and device and everything else for which the host waits (`notes`);
- records and replays graphs. A replay computes again into the same memory, so whatever the host had put into the
  graph by value shows as a wrong answer. What waits, invalidates a capture;
- keeps copies without a wait back until somebody waits for their stream or for an event behind them;
- counts kernels and their bytes (`launches`): an operator is about one kernel, a view is none;
- has several GPUs, and a current one in each thread;
- raises the faults that a test puts into `on_launch`.

What it cannot tell: CUDA's numbers to the last bit, times, the allocator's behaviour, and races between two streams.
torch's own `torch.cuda.graph` and `torch.cuda.stream` run on it. A second thread enters it by `with device:`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from pretend_cuda import attention, norms
from pretend_cuda.device import Launch, Note, PretendDevice
from pretend_cuda.streams import CUDAGraph, Event, Stream
from pretend_cuda.tensors import PretendTensor

__all__ = ["CUDAGraph", "Event", "Launch", "Note", "PretendDevice", "PretendTensor", "Stream", "pretend_cuda"]


@contextlib.contextmanager
def pretend_cuda(
    capability: tuple[int, int] = (9, 0), num_gpus: int = 2, free_bytes: int = 100 << 30
) -> Iterator[PretendDevice]:
    """Pretend that the GPUs `cuda:0` ... are there.

    Args:
        capability: the generation: (7, 5) is a T4, (8, 0) an A100, (9, 0) an H100.
        free_bytes: of each GPU's memory.
    """
    device = PretendDevice(capability, num_gpus, free_bytes)
    for kind in (Stream, CUDAGraph):
        kind.on = device
    with contextlib.ExitStack() as stack:
        for name, value in _functions(device).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.cuda.graph, "default_capture_stream", None))
        stack.enter_context(mock.patch.object(torch._C, "_host_emptyCache", _nothing, create=True))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda x, *_: device.pin(x)))
        stack.enter_context(mock.patch.object(torch.Tensor, "is_pinned", lambda x, *_: device.is_pinned(x)))
        attend = partial(attention.scaled_dot_product_attention, device)
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attend))
        stack.enter_context(mock.patch.object(F, "rms_norm", partial(norms.rms_norm, device)))
        for name in ("tensor", "as_tensor"):  # their C++ copies to the device without an operator
            stack.enter_context(mock.patch.object(torch, name, _copied(getattr(torch, name))))
        stack.enter_context(mock.patch.object(torch, "Generator", _HostGenerator))
        stack.enter_context(_restored_flags())
        stack.enter_context(device)
        yield device


_Generator = torch.Generator


class _HostGenerator:
    """Draws on the host for every device. CUDA's own draws other numbers."""

    def __new__(cls, device: Any = None) -> torch.Generator:  # type: ignore[misc]
        del device
        return _Generator("cpu")


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _functions(device: PretendDevice) -> dict[str, Any]:
    """What stands in for the functions and classes of `torch.cuda`."""
    properties = SimpleNamespace(
        name="pretend", major=device.capability[0], minor=device.capability[1],
        total_memory=device.free_bytes, multi_processor_count=132,
    )  # fmt: skip

    def exchange(gpu: int) -> int:
        before = device.current_device()
        device.set_device(gpu)
        return before

    return {
        "_lazy_init": _nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: device.num_gpus,
        "current_device": device.current_device,
        "set_device": device.set_device,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "synchronize": device.synchronize,
        "current_stream": device.current_stream,
        "default_stream": device.default_stream,
        "set_stream": device.set_stream,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "is_current_stream_capturing": lambda: device.capture is not None,
        "get_device_capability": lambda _=None: device.capability,
        "get_device_properties": lambda _=None: properties,
        "get_device_name": lambda _=None: "pretend",
        "is_bf16_supported": lambda *_, **__: device.capability >= (8, 0),
        "empty_cache": _nothing,
        "mem_get_info": lambda _=None: (device.free_bytes, device.free_bytes),
        "memory_reserved": lambda _=None: 0,
        "memory_allocated": lambda _=None: 0,
        "max_memory_allocated": lambda _=None: 0,
        "reset_peak_memory_stats": _nothing,
    }


def _copied(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(data: Any, *args: Any, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(data, *args, device=device, **options)
        if isinstance(data, torch.Tensor):
            return data.to(device, options.get("dtype"))
        return make(data, *args, **options).to(device)

    return made


@contextlib.contextmanager
def _restored_flags() -> Iterator[None]:
    """Modules move to the device as a CPU build can, and torch's own switches are as before afterwards."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    by_cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
        torch.backends.cuda.enable_cudnn_sdp(by_cudnn)
