"""A fitted ensemble as compiled code: preprocessing, one forward pass per group of members, outputs.

tabpfn prepares and runs its members one after another, in Python, anew for every call. Here everything that the fit
decided is laid out once. Members of one network and equal width form a group and run together, their KV caches side by
side. A call is then one preparation on the host, one copy to the device, one forward pass per group, and one copy back.

On a GPU a call has three stages, so that the GPU computes while the host works on the batches before and behind.
`launch` prepares the rows in pinned memory, and enters on one stream: the copy in, the recorded forward pass, the copy
out into pinned memory, and an event. `collect` waits for the event. The recording's own buffers serve every batch,
because a stream runs in order. torch does not use pinned memory again before the copy that it is for has been done.

What must hold: the answers equal tabpfn's within rounding, for any number of rows. This code depends on tabpfn's
internals, so canary rows check it whenever a model is loaded (engine.py), not only in tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from serve.core import Launched, Matrix
from serve.engine.execution.precision import LARGE_PARAMETERS, Precision
from serve.engine.execution.recorded import Compute, RecordedCompute, TracedCompute
from serve.engine.execution.split_rows import DividedCompute, torch_threads
from serve.engine.forward import Builder, Forward, Group, v2, v2_5, v3, v3_5
from serve.engine.outputs import ClassifierOutputs, RegressorOutputs, round_probabilities
from serve.engine.preprocessing import compile_preprocessing

_BUILDERS: Mapping[str, Builder] = {
    "TabPFNV2": v2.build,
    "TabPFNV2p5": v2_5.build,
    "TabPFNV2p6": v2_5.build,
    "TabPFNV3": v3.build,
    "TabPFNV3p5": v3_5.build,
}
"""Compiled forward passes by the class name of tabpfn's network."""


def can_compile(estimator: Any) -> bool:
    """Whether every network of the fitted estimator has a compiled forward pass.

    False for a constant target, for which tabpfn runs no network.
    """
    if getattr(estimator, "is_constant_target_", False):
        return False
    networks = (cache.get_any() for cache in estimator.executor_.model_caches)
    return all(type(network).__name__ in _BUILDERS for network in networks)


class CompiledEnsemble:
    """Answers clean rows.

    Args:
        estimator: fitted with "fit_with_cache", and `can_compile`. It may drop its KV caches afterwards.
        device: the device of the estimator's networks and caches.
        precision: number formats of the forward passes.
        probe: one clean row, float64 [1, features].
    """

    def __init__(self, estimator: Any, device: torch.device, precision: Precision, probe: Matrix) -> None:
        self._estimator = estimator
        self._is_classifier = hasattr(estimator, "classes_")
        executor = estimator.executor_
        members = executor.ensemble_members
        caches_of_groups: list[list[int]] = []

        def group_members(widths: Sequence[int]) -> list[list[int]]:
            caches_of_groups.extend(_join_caches(executor, widths))
            return [
                [place for index in caches for place in executor.cache_groups[index]] for caches in caches_of_groups
            ]

        self._device = device
        self._preprocessing = compile_preprocessing(members, group_members)
        groups = self._preprocessing.groups
        task_type = "multiclass" if self._is_classifier else "regression"
        self._passes = _build_passes(
            executor, caches_of_groups, groups, self._preprocessing.columns, task_type, device, precision
        )
        order = [position for one in self._passes for number in one.groups for position in groups[number]]
        self._in_member_order = torch.tensor(np.argsort(order), device=device)
        self._outputs: ClassifierOutputs | RegressorOutputs = (
            ClassifierOutputs(estimator, device) if self._is_classifier else RegressorOutputs(estimator, probe, device)
        )
        # A GPU's recording holds the outputs too. On a CPU the rows of the logits may be divided among threads.
        self._is_on_gpu = device.type == "cuda"
        self._compute = _record(self._answer if self._is_on_gpu else self._run_forwards, executor, device)

    @property
    def uncompiled_steps(self) -> tuple[str, ...]:
        """Class names of the steps because of which members are prepared by tabpfn's code."""
        return self._preprocessing.uncompiled

    @property
    def is_recorded(self) -> bool:
        """False where the recording of a CUDA graph failed, so that some calls are slower."""
        return not (isinstance(self._compute, RecordedCompute) and self._compute.num_unrecorded)

    def __call__(self, rows: Matrix) -> Matrix:
        """Clean rows float64 [rows, features] to outputs float64 [rows, outputs], equal to tabpfn's prediction."""
        return self.launch(rows).collect()

    def launch(self, rows: Matrix) -> Launched:
        """As a call, whose answer is collected later; on a GPU without a wait for it."""
        with torch.inference_mode(), self._threads(len(rows)):
            whole = self._preprocessing.new_tensor(len(rows), is_pinned=self._is_on_gpu)
            parts = self._preprocessing(rows, whole)
            if not self._is_on_gpu:
                return _Launched(self, self._outputs(self._compute(parts)), None)
            arriving = self._compute([whole]).to("cpu", non_blocking=True)
            # who waits for it sleeps, and leaves the processor to the preparation of the next batch
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record()
        return _Launched(self, arriving, arrived)

    def _collect(self, outputs: torch.Tensor, arrived: torch.cuda.Event | None) -> Matrix:
        if arrived is not None:
            torch.cuda.set_device(self._device)  # a thread that calls CUDA first would else take up memory of GPU 0
            arrived.synchronize()
        matrix = np.array(outputs.numpy(), dtype=np.float64)
        return round_probabilities(self._estimator, matrix) if self._is_classifier else matrix

    def slack(self, rows: Matrix, share: float) -> Matrix | None:
        """How far the answers move where so small a share of a distribution moves: float64 [rows, outputs].

        None for a classifier.
        """
        if isinstance(self._outputs, ClassifierOutputs):
            return None
        with torch.inference_mode():
            prepared = [part.to(self._device) for part in self._preprocessing(rows)]
            moved = self._outputs.slack(self._run_forwards(prepared), share)
        return np.asarray(moved.cpu().numpy(), dtype=np.float64)

    def _threads(self, num_rows: int) -> AbstractContextManager[None]:
        if isinstance(self._compute, DividedCompute):
            return torch_threads(self._compute.num_torch_threads(num_rows))
        return nullcontext()

    def _answer(self, whole: Sequence[torch.Tensor]) -> torch.Tensor:
        """The outputs for one tensor with the rows of all groups: one copy brings it to a GPU."""
        return self._outputs(self._run_forwards(self._preprocessing.split(whole[0])))

    def _run_forwards(self, prepared: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits [members, rows, ...] in the order of the members."""
        logits = [one.forward(*(prepared[number] for number in one.groups)) for one in self._passes]
        return torch.cat(logits).index_select(0, self._in_member_order)


@dataclass(frozen=True, slots=True)
class _Launched:
    """Outputs on the host. Those of a GPU are in pinned memory, and there after the event `arrived`."""

    ensemble: CompiledEnsemble
    outputs: torch.Tensor
    arrived: torch.cuda.Event | None

    def collect(self) -> Matrix:
        return self.ensemble._collect(self.outputs, self.arrived)


def _record(compute: Compute, executor: Any, device: torch.device) -> Compute:
    """`compute` as it runs fastest on the device, with as many threads as torch has now."""
    if device.type == "cuda":
        return RecordedCompute(compute)
    networks = [cache.get_any() for cache in executor.model_caches]
    is_small = all(sum(p.numel() for p in network.parameters()) < LARGE_PARAMETERS for network in networks)
    num_threads = torch.get_num_threads()
    traced = TracedCompute(compute)
    return DividedCompute(traced, num_threads) if is_small and num_threads > 1 else traced


def _join_caches(executor: Any, widths: Sequence[int]) -> list[list[int]]:
    """Groups tabpfn's caches whose members can share a forward pass: one network, equal widths, equal context rows."""
    joined: dict[tuple[int, int, int], list[int]] = {}
    for index, positions in enumerate(executor.cache_groups):
        member = executor.ensemble_members[positions[0]]
        key = (member.config._model_index, widths[positions[0]], len(member.y_train))
        joined.setdefault(key, []).append(index)
    return list(joined.values())


@dataclass(frozen=True)
class _Pass:
    """One forward pass and the groups that run in it, by their numbers; it answers the groups' members in order."""

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
    """The passes of all groups. Group i has the members `groups[i]`, held in order by tabpfn's caches `caches[i]`."""
    by_network: dict[tuple[int, int], list[int]] = {}
    for number, positions in enumerate(groups):
        member = executor.ensemble_members[positions[0]]
        by_network.setdefault((member.config._model_index, len(member.y_train)), []).append(number)

    def read(number: int) -> Group:
        members = [executor.ensemble_members[position] for position in groups[number]]
        targets = [torch.as_tensor(member.y_train, dtype=torch.float32, device=device) for member in members]
        kv_caches = [executor.kv_caches[index].to(device) for index in caches[number]]
        return Group(kv_caches, torch.stack(targets), columns[number])

    passes = []
    for (model_index, _), numbers in by_network.items():
        network = executor.model_caches[model_index].get(device)
        build = _BUILDERS[type(network).__name__]
        parts = [read(number) for number in numbers]
        passes.append(_Pass(numbers, build(network, parts, task_type, precision.weights, precision.kv_cache)))
    return passes
