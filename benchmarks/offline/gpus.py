"""What a GPU is assumed to reach, and the time that the kernels of a forward pass take on it by these assumptions.

No figure here was measured by this project: it had no GPU yet. They are what kernels of these sizes are known to reach,
below the data sheets' peaks. Expect errors of about 40 %. A run on a real GPU replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.percentiles import rounded

if TYPE_CHECKING:
    from pretend_cuda import Launch

CACHE_SPEEDUP = 3
"""How much faster than the memory a GPU's cache is. It keeps what one kernel leaves for the next, but no weights."""
ATTENTION_SHARE = 0.35
"""What attention reaches of the rate of products."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        capability: its generation.
        gb_per_s: of its memory.
        half_tflops, single_tflops: of products in 16 bit and in float32.
        cache_mb: of its last cache.
        other_us, product_us, attention_us: the shortest time of one kernel inside a CUDA graph, by kind.
    """

    capability: tuple[int, int]
    gb_per_s: float
    half_tflops: float
    single_tflops: float
    cache_mb: float
    other_us: float
    product_us: float
    attention_us: float


GPUS = {
    "H200": Gpu((9, 0), 4000, 600, 48, 50, 1.8, 4.0, 7.0),
    "L4": Gpu((8, 9), 250, 60, 15, 48, 2.2, 5.0, 8.0),
    "A10G": Gpu((8, 6), 500, 60, 20, 6, 2.4, 5.5, 9.0),
    "T4": Gpu((7, 5), 250, 25, 5, 4, 3.0, 7.0, 11.0),
}


def gpus_of(precision: str) -> dict[str, Gpu]:
    """The GPUs that compute in this format: a T4 has no bfloat16, and the others get float16 from nobody."""
    wanted = {"bfloat16": lambda gpu: gpu.capability >= (8, 0), "float16": lambda gpu: gpu.capability < (8, 0)}
    takes = wanted.get(precision, lambda _: True)
    return {name: gpu for name, gpu in GPUS.items() if takes(gpu)}


def kind_of(launch: Launch) -> str:
    """ "attention", "product" or "other"."""
    return "attention" if launch.name.startswith("attention") else "product" if launch.flops else "other"


def times_ms(launches: Sequence[Launch], gpu: Gpu, precision: str) -> dict[str, float | None]:
    """Milliseconds of a forward pass.

    Returns:
        bytes: to read weights and cached keys and values once.
        arithmetic: of products and attention at the full rate.
        launches: of as many kernels without any work.
        estimate: of the kernels one after another, each as long as what takes it longest.
    """
    return {
        "bytes": rounded(sum(launch.held for launch in launches) / gpu.gb_per_s / 1e6, 4),
        "arithmetic": rounded(sum(launch.flops for launch in launches) / _rate(gpu, precision) / 1e9, 4),
        "launches": rounded(sum(_shortest_us(launch, gpu) for launch in launches) / 1e3, 4),
        "estimate": rounded(sum(_us(launch, gpu, precision) for launch in launches) / 1e3, 4),
    }


def _rate(gpu: Gpu, precision: str) -> float:
    return gpu.single_tflops if precision == "float32" else gpu.half_tflops


def _shortest_us(launch: Launch, gpu: Gpu) -> float:
    return {"attention": gpu.attention_us, "product": gpu.product_us, "other": gpu.other_us}[kind_of(launch)]


def _us(launch: Launch, gpu: Gpu, precision: str) -> float:
    passed_on = launch.read + launch.written - launch.held
    speedup = CACHE_SPEEDUP if passed_on <= gpu.cache_mb * 1e6 / 2 else 1
    by_bytes = (launch.held + passed_on / speedup) / gpu.gb_per_s / 1e3
    share = ATTENTION_SHARE if kind_of(launch) == "attention" else 1
    return max(_shortest_us(launch, gpu), by_bytes, launch.flops / (share * _rate(gpu, precision)) / 1e6)
