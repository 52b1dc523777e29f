"""Where tabpfn answers otherwise without its KV cache than with it, so that the two cannot be compared.

There are three causes, the first two in columns that hold one value, or nearly one beside their size, for the network:

- TabPFN v2, v2.5 and v2.6 leave out columns of one value. Without the KV cache they look for such columns among the
  rows of the context and the rows that are asked for; with it, among the context alone. So a column that is constant in
  the context counts for nothing with the cache. Without it, the column counts as soon as a row holds another value, and
  it moves the other columns of its group;
- every network scales its columns by their standard deviation. That of equal values is 0, or it is the rounding error
  of their mean. This error depends on the order of the sum, so on the memory layout, and the two modes use two layouts.
  Where the mean is far larger than the deviation (1e6 and 1), its last bit moves the mean that stands in for a missing
  cell;
- TabPFN v3.5 ranks cells among the context's. The mean that stands in for a missing cell may equal a value of the
  context, such as 0 among values on both sides of it. Its last bit then decides on which side of that value it ranks.

A column may be constant for the network only: a member prepares it, and float32 or the preparation may leave no
difference (1e9 and 1e9 + 1e-5, or a scale of 1e-25). So the columns are looked for behind all of that, with tabpfn's
own functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tabpfn.inference import InferenceEngineExplicitKVCache, InferenceEngineOnDemand, _maybe_run_gpu_preprocessing
from tabpfn.preprocessing.torch.ops import torch_nanmean
from tabpfn.preprocessing.torch.torch_standard_scaler import TorchStandardScaler

from serve.core import Matrix
from serve.engine import tabpfn_estimators
from serve.engine.estimators.plausible import takes
from serve.engine.tabpfn_estimators import Estimator

_LEAVE_OUT_CONSTANTS = ("TabPFNV2", "TabPFNV2p5", "TabPFNV2p6")
"""Class names of the networks with this rule."""
_RANKS = ("TabPFNV3p5",)
"""Class names of the networks that rank cells."""
_STABLE = 1e-4
"""How far scaled cells, of which most lie between -3 and 3, may differ for two orders of a sum; usual are 1e-6."""
_NUM_ORDERS = 8
"""Orders in which the mean of a column is summed, to see by how much it is off."""

Bools: TypeAlias = NDArray[np.bool_]


def predict_uncached(estimator: Estimator, rows: Matrix, cached: Callable[[], Estimator]) -> Matrix:
    """tabpfn's answers without a KV cache, but with it for the rows that `rows_that_differ`.

    Args:
        estimator: fitted without the cache.
        rows: clean rows, float64 [rows, features].
        cached: makes the same estimator with the cache; called at most once, after `estimator` has answered.

    Returns:
        As `tabpfn_estimators.predict_each_alone`.
    """
    differs = rows_that_differ(estimator, rows)
    parts: dict[bool, Matrix] = {}
    if not differs.all():
        parts[False] = _predict(estimator, rows[~differs])
    if differs.any():
        parts[True] = _predict(cached(), rows[differs])
    outputs = np.empty((len(rows), next(iter(parts.values())).shape[1]))
    for is_cached, part in parts.items():
        outputs[differs == is_cached] = part
    return outputs


def _predict(estimator: Estimator, rows: Matrix) -> Matrix:
    return tabpfn_estimators.predict_each_alone(tabpfn_estimators.on_matrices(estimator), rows)


def rows_that_differ(estimator: Estimator, rows: Matrix) -> Bools:
    """Which clean rows tabpfn answers otherwise without its KV cache than with it: bool [rows].

    None where the estimator was fitted with the cache, so that its context is gone.
    """
    differs = np.zeros(len(rows), bool)
    for member in _members(estimator):
        inputs = _Inputs(member, rows)
        if _leaves_out_constants(estimator):
            differs |= inputs.deviations().numpy()
        if (inputs.is_unstable() & ~_left_out(estimator, inputs)).any():
            differs[:] = True
        fills_unstably = inputs.fills_unstably()
        if _has_network(estimator, _RANKS):
            fills_unstably |= inputs.ranks_its_mean_unstably()
            if (fills_unstably & ~inputs.context.isfinite().all(dim=0)).any():
                differs[:] = True
        differs |= (~inputs.asked.isfinite() & fills_unstably).any(dim=1).numpy()
    return differs


def columns_that_differ(estimator: Estimator, base: Matrix, probes: Matrix, columns: NDArray[np.intp]) -> list[int]:
    """The features because of which tabpfn's modes differ, in ascending order.

    Args:
        base: a clean row, float64 [features].
        probes: copies of it with one other value each, float64 [probes, features]. Those that a member cannot prepare
            do not count.
        columns: the feature that is other in each probe, [probes].
    """
    found: set[int] = set()
    for member in _members(estimator):
        taken = takes(member, probes)
        inputs = _Inputs(member, np.concatenate([base[None], probes[taken]]))
        counts = inputs.is_unstable() & ~_left_out(estimator, inputs)
        if _leaves_out_constants(estimator):
            counts |= inputs.is_constant()
        of_base, of_probes = inputs.asked[:1, counts], inputs.asked[1:, counts]
        moved = (of_probes != of_base) & ~(of_probes.isnan() & of_base.isnan())
        found |= {int(column) for column in columns[taken][moved.any(dim=1).numpy()]}
    return sorted(found)


def _members(estimator: Estimator) -> Iterator[Any]:
    """The fitted members with their prepared contexts; none where only KV caches are left of these."""
    executor = estimator.executor_
    if isinstance(executor, InferenceEngineOnDemand):
        yield from executor.ensemble_preprocessor.fit_transform_ensemble_members(
            X_train=executor.X_train, y_train=executor.y_train
        )
    elif not isinstance(executor, InferenceEngineExplicitKVCache):
        yield from executor.ensemble_members


def _leaves_out_constants(estimator: Estimator) -> bool:
    return _has_network(estimator, _LEAVE_OUT_CONSTANTS)


def _has_network(estimator: Estimator, names: Sequence[str]) -> bool:
    return any(type(cache.get_any()).__name__ in names for cache in estimator.executor_.model_caches)


def _left_out(estimator: Estimator, inputs: _Inputs) -> torch.Tensor:
    """Columns that the network leaves out before it scales, unless a row deviates: bool [width]."""
    return inputs.is_one_value() if _leaves_out_constants(estimator) else torch.zeros(inputs.context.shape[1]).bool()


class _Inputs:
    """A member's context, and rows, as the network sees them.

    Attributes:
        context: float32 [context rows, width].
        asked: float32 [rows, width].
    """

    def __init__(self, member: Any, rows: Matrix) -> None:
        built = torch.as_tensor(member.X_train, dtype=torch.float32, device="cpu")
        with np.errstate(all="ignore"):  # of numbers that overflow
            asked = torch.as_tensor(member.transform_X_test(rows), dtype=torch.float32)
        # without the KV cache tabpfn joins both, and with it, the context keeps the layout that it was built with
        joined = _prepare(member, torch.cat([built, asked]), len(built))
        self.context, self.asked = joined[: len(built), 0], joined[len(built) :, 0]
        self._scaled, self._asked_scaled = (part[:, 0] for part in _scale(joined[: len(built)], joined[len(built) :]))
        self._built_scaled = _scale(_prepare(member, built, len(built)), joined[:0])[0][:, 0]

    def is_one_value(self) -> torch.Tensor:
        """Columns whose cells are equal, none of them missing: bool [width]."""
        return (self.context == self.context[0]).all(dim=0)

    def is_constant(self) -> torch.Tensor:
        """Columns whose cells are equal in value or after scaling, or equal where they are finite: bool [width]."""
        return self.is_one_value() | (self._scaled == self._scaled[0]).all(dim=0) | self._has_one_finite_value()

    def is_unstable(self) -> torch.Tensor:
        """Columns whose scaled cells depend on the memory layout: bool [width]."""
        return ((self._scaled - self._built_scaled).abs() > _STABLE).any(dim=0)

    def fills_unstably(self) -> torch.Tensor:
        """Columns in which the last bit of the mean moves the scaled mean of a missing cell: bool [width].

        That bit depends on how many columns of how many members are summed at once.
        """
        finite = self._finite()
        mean = finite.nanmean(dim=0)
        std = (finite - mean).square().nanmean(dim=0).sqrt()
        return (mean.abs() * torch.finfo(torch.float32).eps > _STABLE * std) & ~self._has_one_finite_value()

    def ranks_its_mean_unstably(self) -> torch.Tensor:
        """Columns whose mean lies on one side of a value or on the other, by the order of its sum: bool [width]."""
        draw = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(self.context), generator=draw) for _ in range(_NUM_ORDERS)]
        means = torch.stack([torch_nanmean(self.context[order], axis=0, include_inf=True) for order in orders])
        low, high = means.amin(dim=0), means.amax(dim=0)
        is_between = (self.context >= low) & (self.context <= high)
        return (is_between.any(dim=0) & (low < high)) & ~self._has_one_finite_value()

    def _finite(self) -> torch.Tensor:
        """The context with NaN for what is missing or infinite: float64."""
        return self.context.double().where(self.context.isfinite(), torch.nan)

    def deviations(self) -> torch.Tensor:
        """Rows that deviate from a constant of the context, in value or after scaling: bool [rows]."""
        by_value = self.is_one_value() & (self.asked != self.context[0])
        by_scale = (self._scaled == self._scaled[0]).all(dim=0) & (self._asked_scaled != self._scaled[0])
        highest = self.context.masked_fill(~self.context.isfinite(), -torch.inf).amax(dim=0)
        # the mean of equal values may be rounded, so that scaling does not tell
        among_finite = self._has_one_finite_value() & self.asked.isfinite() & (self.asked != highest)
        return (by_value | by_scale | among_finite).any(dim=1)

    def _has_one_finite_value(self) -> torch.Tensor:
        finite = self.context.isfinite()
        low = self.context.masked_fill(~finite, torch.inf).amin(dim=0)
        return low == self.context.masked_fill(~finite, -torch.inf).amax(dim=0)


def _prepare(member: Any, rows: torch.Tensor, num_train_rows: int) -> torch.Tensor:
    """The rows after the member's steps in torch: float32 [rows, 1, width]."""
    prepared: torch.Tensor
    prepared, _ = _maybe_run_gpu_preprocessing(
        rows.unsqueeze(1),
        gpu_preprocessor=member.gpu_preprocessor,
        num_train_rows=num_train_rows,
        feature_schema=member.feature_schema,
    )
    return prepared


def _scale(context: torch.Tensor, asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as the networks scale them: cells that are missing or infinite get the context's mean first."""
    mean = torch_nanmean(context, axis=0, include_inf=True)
    filled, others = (torch.where(rows.isfinite(), rows, mean) for rows in (context, asked))
    scaler = TorchStandardScaler()
    fitted = scaler.fit(filled)
    return scaler.transform(filled, fitted), scaler.transform(others, fitted)
