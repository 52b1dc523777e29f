"""What the processor multiplies fast, by which kernels are chosen on a CPU.

Two kinds were measured. With AMX (Intel, from Sapphire Rapids on) bfloat16 products are so fast that all the rest
decides, such as converting to and fro. Without it they have about twice the speed of float32 ones, in any width (AMD
EPYC with AVX-512: 215 against 94 GFLOP/s a core). What holds for one kind does not for the other. The kind is asked for
and never timed: replicas on like machines answer alike.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_amx() -> bool:
    """Whether torch's kernels multiply by AMX here: the processor has it and the kernel of the system permits it."""
    return bool(torch.cpu._is_amx_tile_supported())
