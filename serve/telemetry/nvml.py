"""Memory and load of a GPU, read from its driver (NVML).

NVML needs no CUDA context, which would take some hundred megabytes of the device. So the process that listens can ask,
although the engine runs in another process.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import pynvml

_log = logging.getLogger(__name__)


class Gpu:
    """One GPU. Every reading asks the driver; a reading that the driver does not give is NaN."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def memory_used_bytes(self) -> float:
        """Memory in use, by all processes."""
        try:
            return float(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except pynvml.NVMLError:
            return math.nan

    def utilization_ratio(self) -> float:
        """Share of the driver's last sample period in which the GPU computed, by all processes; from 0 to 1.

        NaN for a part of a GPU (MIG), whose load the driver does not know.
        """
        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
        except pynvml.NVMLError:
            return math.nan


def find_gpu(device: str) -> Gpu | None:
    """The GPU of `cuda:N`. None for a CPU, and, with a warning in the log, where the driver cannot be asked."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    try:
        pynvml.nvmlInit()
        handle = _find(int(index))
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    except (pynvml.NVMLError, LookupError) as error:
        _log.warning("no metrics of %s: %s", device, error)
        return None
    return Gpu(handle)


def visible_devices() -> list[str] | None:
    """The names in `CUDA_VISIBLE_DEVICES`, in order; None where it is not set, and CUDA sees every GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]


def _find(index: int) -> Any:
    """NVML's handle of CUDA's device `index`.

    NVML knows every GPU; CUDA knows those of `CUDA_VISIBLE_DEVICES`, in that order. Names there are indices or UUIDs,
    which may be abbreviated. An index means the same GPU to NVML and CUDA, as torch assumes.

    Raises:
        LookupError: the variable names no such device.
    """
    names = visible_devices()
    if names is None:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    if index >= len(names):
        raise LookupError(f"CUDA_VISIBLE_DEVICES names {len(names)} devices")
    if names[index].isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(names[index]))
    for number in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
        if pynvml.nvmlDeviceGetUUID(gpu).startswith(names[index]):
            return gpu
    raise LookupError(f"the driver knows no GPU {names[index]!r}")
