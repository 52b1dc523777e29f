"""A failed call is told apart: too little memory, a lost device, or something that passes."""

import pytest
import torch

from serve.engine.execution.faults import is_device_lost, is_out_of_memory

ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call\nCompile with `TORCH_USE_CUDA_DSA`"
)
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    torch.AcceleratorError("CUDA error: out of memory" + ADVICE),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + ADVICE),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + ADVICE),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    torch.AcceleratorError("the device is gone"),
    RuntimeError("CUDA error: device-side assert triggered" + ADVICE),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
]
PASSING = [
    torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing" + ADVICE),
    torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture" + ADVICE),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("CUDA error: in a text of somebody else"),
]


@pytest.mark.parametrize("error", [*NO_MEMORY, *LOST, *PASSING], ids=lambda error: f"{error!r}"[:60])
def test_faults_are_told_apart(error: Exception) -> None:
    assert is_out_of_memory(error) == (error in NO_MEMORY)
    assert is_device_lost(error) == (error in LOST)
