"""Which products the processor multiplies fast; the kernels on a CPU are chosen by it.

Two kinds of processor were measured. With AMX (Intel, from Sapphire Rapids on) bfloat16 products are so fast that other
work decides, such as conversions. Without AMX bfloat16 products have about twice the speed of float32 ones at any width
(AMD EPYC with AVX-512: 215 against 94 GFLOP/s a core). What is true of one kind is false of the other. The kind is read
from the processor and never timed, so that replicas on equal machines answer alike.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_amx() -> bool:
    """Whether torch multiplies with AMX here: the processor has it and the system's kernel permits it."""
    return bool(torch.cpu._is_amx_tile_supported())
