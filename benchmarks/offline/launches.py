"""The kernels of one forward pass, counted on the tests' pretend device. No GPU is needed."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from benchmarks.machine import ROOT
from benchmarks.offline.sides import mix_rows
from serve.core import ModelDefinition
from serve.engine import tabpfn_estimators
from serve.engine.compiled import CompiledEnsemble
from serve.engine.context_fit import ContextFit, Fitted
from serve.engine.execution.precision import resolve_precision
from serve.settings import EngineSettings

if TYPE_CHECKING:
    from pretend_cuda import Launch

_PRETEND_CUDA = ROOT / "tests" / "engine"


def capability_of(precision: str) -> tuple[int, int]:
    """The generation of GPUs that serves in this format: a T4 in float16, an H100 or H200 otherwise."""
    return (7, 5) if precision == "float16" else (9, 0)


def fit(definition: ModelDefinition) -> Fitted:
    """The context fitted on the CPU, for `count_launches`. Raises InvalidModel."""
    return ContextFit(definition, EngineSettings(), "float32").fit()


def count_launches(fitted: Fitted, precision: str, rows: Sequence[int], seed: int = 0) -> dict[int, list[Launch]]:
    """The kernels of the CUDA graph that answers so many rows, by the number of rows, in their order."""
    if str(_PRETEND_CUDA) not in sys.path:
        sys.path.append(str(_PRETEND_CUDA))
    from pretend_cuda import pretend_cuda

    counted, gpu = {}, torch.device("cuda:0")
    with pretend_cuda(capability_of(precision)) as device:
        torch.backends.cuda.enable_cudnn_sdp(False)  # as the engine does
        estimator = copy.deepcopy(fitted.estimator)
        estimator.to(str(gpu))
        formats = resolve_precision(precision, "auto", gpu, 0)
        compiled = CompiledEnsemble(tabpfn_estimators.on_matrices(estimator), gpu, formats, fitted.rows[:1])
        for num_rows in rows:
            before = len(device.launches)
            compiled(mix_rows(fitted.rows, num_rows, seed))
            counted[num_rows] = [launch for launch in device.launches[before:] if launch.is_captured]
    return counted


def extend(
    near: Sequence[Launch], near_rows: int, far: Sequence[Launch], far_rows: int, context_rows: int
) -> list[Launch]:
    """The kernels with a larger context, on the straight line through those with two smaller ones.

    Bytes and multiplications of each kernel grow with the context by a constant for each of its rows, or not at all.
    Raises ValueError where the two contexts take different kernels.
    """
    if [launch.name for launch in near] != [launch.name for launch in far]:
        raise ValueError(
            f"contexts of {near_rows} and {far_rows} rows take different kernels, so that nothing follows for "
            f"{context_rows} rows: give --context-rows of at most {far_rows}"
        )
    share = (context_rows - far_rows) / (far_rows - near_rows)
    fields = ("read", "written", "flops", "held")

    def at(one: Launch, other: Launch) -> Launch:
        values = {name: (getattr(one, name), getattr(other, name)) for name in fields}
        return dataclasses.replace(other, **{name: round(b + (b - a) * share) for name, (a, b) in values.items()})

    return [at(one, other) for one, other in zip(near, far, strict=True)]
