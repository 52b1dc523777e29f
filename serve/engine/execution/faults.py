"""What a failed call says of its device: the memory was too small, or the device is lost."""

from __future__ import annotations

import torch

_CUDA = "CUDA error: "


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the call needed more memory than there was, so that a smaller one may succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    reason = _cuda_reason(error)
    return reason is not None and (reason.startswith("out of memory") or "ALLOC_FAILED" in reason)


def is_device_lost(error: BaseException) -> bool:
    """Whether CUDA's context is gone, as after an illegal access, a fault of the memory, or with the device itself.

    Every later call of the process fails then, so the process has to end. CUDA has dozens of such errors, and few that
    pass; those are a lack of memory and what is not permitted while a graph is captured. An error that is taken for
    lost by mistake costs one restart; one that is not would fail every request for good.
    """
    reason = _cuda_reason(error)
    return reason is not None and not is_out_of_memory(error) and "captur" not in reason


def _cuda_reason(error: BaseException) -> str | None:
    """The reason that CUDA gives, in one line; None for an error of something else."""
    reason = str(error).partition("\n")[0]
    if not isinstance(error, RuntimeError) or not (isinstance(error, torch.AcceleratorError) or _CUDA in reason):
        return None
    return reason.rpartition(_CUDA)[2]
