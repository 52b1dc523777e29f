"""A fitted ensemble as our own code from first to last: preprocessing, one forward per group of members, outputs.

The library prepares and runs its members one after another, in Python, anew for every call. Here all that the fit
decided is laid out once: members of one network and equal width are one group and pass through it together, their KV
caches side by side; a call is then one preparation on the host, one copy in, one forward per group, one copy out.

What must hold: the answers are the library's own to within rounding, whatever the number of rows. That is checked on
canary rows whenever a model is loaded (engine.py), not only in tests, because it leans on the library's internals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from serve.core import Matrix
from serve.engine.execution.precision import LARGE_PARAMETERS, Precision
from serve.engine.execution.recorded import Compute, RecordedCompute, TracedCompute
from serve.engine.execution.split_rows import DividedCompute, torch_threads
from serve.engine.forward import Builder, Forward, Group, v2, v2_5, v3, v3_5
from serve.engine.outputs import ClassifierOutputs, Outputs, RegressorOutputs, round_probabilities
from serve.engine.preprocessing import compile_preprocessing

_BUILDERS: Mapping[str, Builder] = {
    "TabPFNV2": v2.build,
    "TabPFNV2p5": v2_5.build,
    "TabPFNV2p6": v2_5.build,
    "TabPFNV3": v3.build,
    "TabPFNV3p5": v3_5.build,
}
"""By the class name of tabpfn's network."""


def can_compile(estimator: Any) -> bool:
    """Whether every network of the fitted estimator has a forward of ours, and there is anything to run at all."""
    if getattr(estimator, "is_constant_target_", False):
        return False
    networks = (cache.get_any() for cache in estimator.executor_.model_caches)
    return all(type(network).__name__ in _BUILDERS for network in networks)


class CompiledEnsemble:
    """Clean rows to outputs.

    Args:
        estimator: fitted with "fit_with_cache" and `can_compile`. It may drop its KV caches afterwards.
        device: where the estimator's networks and caches are.
        precision: of the forward passes.
        probe: one clean row, float64 [1, features].
    """

    def __init__(self, estimator: Any, device: torch.device, precision: Precision, probe: Matrix) -> None:
        self._estimator = estimator
        self._is_classifier = hasattr(estimator, "classes_")
        executor = estimator.executor_
        members = executor.ensemble_members
        joined: list[list[int]] = []

        def group_members(widths: Sequence[int]) -> list[list[int]]:
            joined.extend(_join_caches(executor, widths))
            return [[position for index in caches for position in executor.cache_groups[index]] for caches in joined]

        self._preprocessing = compile_preprocessing(members, device, group_members)
        groups = self._preprocessing.groups
        task_type = "multiclass" if self._is_classifier else "regression"
        self._passes = _build_passes(
            executor, joined, groups, self._preprocessing.columns, task_type, device, precision
        )
        order = [position for one in self._passes for number in one.groups for position in groups[number]]
        self._in_member_order = torch.tensor(np.argsort(order), device=device)
        self._outputs: Outputs = (
            ClassifierOutputs(estimator, device) if self._is_classifier else RegressorOutputs(estimator, probe, device)
        )
        self._logits = _record(self._run_forwards, executor, device)

    @property
    def uncompiled_steps(self) -> tuple[str, ...]:
        """Preprocessing steps that still run through the library's code, by class name."""
        return self._preprocessing.uncompiled

    def __call__(self, rows: Matrix) -> Matrix:
        """Outputs float64 [rows, outputs] of clean rows float64 [rows, features]; what the library's predict gives."""
        with torch.inference_mode(), self._threads(len(rows)):
            outputs = self._outputs(self._logits(self._preprocessing(rows)))
        matrix = np.asarray(outputs.cpu().numpy(), dtype=np.float64)
        return round_probabilities(self._estimator, matrix) if self._is_classifier else matrix

    def _threads(self, num_rows: int) -> AbstractContextManager[None]:
        if isinstance(self._logits, DividedCompute):
            return torch_threads(self._logits.num_torch_threads(num_rows))
        return nullcontext()

    def _run_forwards(self, prepared: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits [members, rows, ...] in the members' own order."""
        logits = [one.forward(*(prepared[number] for number in one.groups)) for one in self._passes]
        return torch.cat(logits).index_select(0, self._in_member_order)


def _record(compute: Compute, executor: Any, device: torch.device) -> Compute:
    """`compute` as it runs fastest on the device, and by as many threads as torch has now."""
    if device.type == "cuda":
        return RecordedCompute(compute)
    networks = [cache.get_any() for cache in executor.model_caches]
    is_small = all(sum(p.numel() for p in network.parameters()) < LARGE_PARAMETERS for network in networks)
    num_threads = torch.get_num_threads()
    traced = TracedCompute(compute)
    return DividedCompute(traced, num_threads) if is_small and num_threads > 1 else traced


def _join_caches(executor: Any, widths: Sequence[int]) -> list[list[int]]:
    """The library's cache groups whose members may share a forward: one network, equal width, as many context rows."""
    joined: dict[tuple[int, int, int], list[int]] = {}
    for index, positions in enumerate(executor.cache_groups):
        member = executor.ensemble_members[positions[0]]
        key = (member.config._model_index, widths[positions[0]], len(member.y_train))
        joined.setdefault(key, []).append(index)
    return list(joined.values())


@dataclass(frozen=True)
class _Pass:
    """What goes through one forward together: groups by their numbers, whose logits stand end to end."""

    groups: Sequence[int]
    forward: Forward


def _build_passes(
    executor: Any,
    caches: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    columns: Sequence[torch.Tensor],
    task_type: str,
    device: torch.device,
    precision: Precision,
) -> list[_Pass]:
    """Passes of all groups: of members `groups[i]`, who lie in the library's caches `caches[i]` in this order."""
    alike: dict[tuple[int, int], list[int]] = {}
    for number, positions in enumerate(groups):
        member = executor.ensemble_members[positions[0]]
        alike.setdefault((member.config._model_index, len(member.y_train)), []).append(number)

    def read(number: int) -> Group:
        members = [executor.ensemble_members[position] for position in groups[number]]
        targets = [torch.as_tensor(member.y_train, dtype=torch.float32, device=device) for member in members]
        kv_caches = [executor.kv_caches[index].to(device) for index in caches[number]]
        return Group(kv_caches, torch.stack(targets), columns[number])

    passes = []
    for (model_index, _), numbers in alike.items():
        network = executor.model_caches[model_index].get(device)
        build = _BUILDERS[type(network).__name__]
        parts = [read(number) for number in numbers]
        passes.append(_Pass(numbers, build(network, parts, task_type, precision.weights, precision.kv_cache)))
    return passes
