"""The GPU's memory and load in `/metrics`, as its driver tells them (NVML).

NVML asks without a CUDA context, which would take some hundred megabytes of the device: the process that listens has
none where the engine runs in another.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pynvml
from prometheus_client import Gauge

_log = logging.getLogger(__name__)


class GpuGauges(Protocol):
    """Where the readings go; each gauge has the label `device`."""

    gpu_memory_used_bytes: Gauge
    gpu_utilization_ratio: Gauge


def observe_gpu(metrics: GpuGauges, device: str) -> None:
    """Have the gauges of `cuda:N` ask the driver whenever they are read; a driver that cannot say is a warning.

    Other devices get no series.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return
    try:
        pynvml.nvmlInit()
        gpu = _find(int(index), os.environ.get("CUDA_VISIBLE_DEVICES"))
        pynvml.nvmlDeviceGetMemoryInfo(gpu)
    except (pynvml.NVMLError, LookupError) as error:
        _log.warning("no metrics of %s: %s", device, error)
        return
    metrics.gpu_memory_used_bytes.labels(device).set_function(partial(_read, _memory_used, gpu))
    metrics.gpu_utilization_ratio.labels(device).set_function(partial(_read, _utilization, gpu))


def _find(index: int, visible: str | None) -> Any:
    """NVML's handle of CUDA's device `index`: NVML knows every GPU, CUDA those of `CUDA_VISIBLE_DEVICES`, in its order.

    Names there are indices or UUIDs, which may be cut short. Indices are taken to mean the same GPU to both, as torch
    does: CUDA may count unequal GPUs otherwise. Raises LookupError where it holds no such device.
    """
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if index >= len(names):
        raise LookupError(f"CUDA_VISIBLE_DEVICES names {len(names)}")
    if names[index].isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(names[index]))
    for number in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
        if pynvml.nvmlDeviceGetUUID(gpu).startswith(names[index]):
            return gpu
    raise LookupError(f"the driver knows no {names[index]!r}")


def _memory_used(gpu: Any) -> float:
    return float(pynvml.nvmlDeviceGetMemoryInfo(gpu).used)


def _utilization(gpu: Any) -> float:
    return float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100


def _read(read: Callable[[Any], float], gpu: Any) -> float:
    """NaN where the driver does not say, as for the load of a part of a GPU (MIG), or no longer."""
    try:
        return read(gpu)
    except pynvml.NVMLError:
        return math.nan
