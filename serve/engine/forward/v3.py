"""The test-only forward pass of tabpfn_v3: the stages of `v3_stages.py` on plainer cells than v3.5's.

It differs from v3.5 as follows. A cell is a linear function of its columns' scaled values and missing indicators,
without ranks or waves. Queries and keys are not normed. The output has no feed-forward layer before it. A network is
made for one task. The reference is `TabPFNV3.forward(x, y, kv_cache=..., x_is_test_only=True)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

from serve.engine.forward import Group
from serve.engine.forward.layers import ComputeSpec
from serve.engine.forward.v3_cells import Scaling, SharedColumns
from serve.engine.forward.v3_stages import StagedForward, join_groups
from serve.engine.forward.votes import Votes


def build(
    network: torch.nn.Module,
    groups: Sequence[Group],
    task_type: str,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
) -> StagedForward:
    """As `build` of v3_5.py. Raises ValueError where the network was made for the other task type."""
    if task_type != network.task_type:
        raise ValueError(f"task type {task_type!r}, but the network was made for {network.task_type!r}")
    with torch.inference_mode():
        spec = ComputeSpec(next(network.parameters()).device, dtype, kv_dtype)
        caches, targets = join_groups(groups)
        head: list[Callable[[torch.Tensor], torch.Tensor]]
        if task_type == "multiclass":
            head = [Votes(network.many_class_decoder, caches, targets, spec)]
        else:
            widen, _, output = network.output_projection  # type: ignore[misc]
            head = [spec.exact_linear(widen), F.gelu, spec.exact_linear(output)]
        return StagedForward(network, groups, cast(Any, network).feature_group_size, _Cells, head, spec)


class _Cells:
    """Stage 0 (`_preprocess_raw`, `_group_features`, `x_embed`), in float32."""

    def __init__(self, network: Any, caches: Sequence[Any], shared: SharedColumns, spec: ComputeSpec) -> None:
        self._scaling = Scaling(caches, shared.columns, spec)
        self._neighbours, self._group = shared.neighbours, network.feature_group_size
        self._has_indicators: bool = network.use_nan_indicators
        self._embed = spec.exact_linear(network.x_embed)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """float32 [columns, R] to float32 [cells, R, E]."""
        _, scaled, indicators = self._scaling(values)
        parts = (scaled, indicators) if self._has_indicators else (scaled,)
        grouped = [torch.unflatten(x.index_select(0, self._neighbours), 0, (-1, self._group)) for x in parts]
        return self._embed(torch.cat(grouped, dim=1).transpose(1, 2))
