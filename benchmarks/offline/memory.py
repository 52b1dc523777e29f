"""Memory in bytes: of tensors, by their storages, and of this process, by the kernel's count."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def tensor_bytes(*roots: Any) -> int:
    """Bytes of every tensor in containers and dataclasses; a storage that two tensors share counts once."""
    storages = {}
    for root in roots:
        for tensor in _tensors(root):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(root: Any) -> Iterator[torch.Tensor]:
    if isinstance(root, torch.Tensor):
        yield root
    elif isinstance(root, Mapping):
        for value in root.values():
            yield from _tensors(value)
    elif isinstance(root, list | tuple):
        for value in root:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(root):
        for field in dataclasses.fields(root):
            yield from _tensors(getattr(root, field.name))


def reset_peaks() -> bool:
    """Let the peaks start from now. False if the kernel refuses: the process's peak then counts from its start."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")  # proc(5): resets the high-water mark of resident memory
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int:
    """Peak of this process's resident memory since `reset_peaks`."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_device_bytes(device: str) -> int | None:
    """Peak of torch's memory on a GPU since `reset_peaks`; None on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.startswith("cuda") else None
