"""The test-only forward of tabpfn_v3: the stages of v3.5 (v3_5.py, whose theory holds here) on plainer cells.

How it differs from v3.5: a cell is a linear function of its columns' scaled values and of which were missing, without
ranks or waves; queries and keys are not normed; the output has no feed-forward before it. A network is made for one
task. `TabPFNV3.forward(x, y, kv_cache=..., x_is_test_only=True)` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from serve.engine.forward import Forward
from serve.engine.forward.layers import Place
from serve.engine.forward.v3_5 import StagedForward
from serve.engine.forward.v3_cells import Scaling, find_neighbours
from serve.engine.forward.votes import Votes


def build(
    network: torch.nn.Module,
    caches: Sequence[Any],
    targets: torch.Tensor,
    task_type: str,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
) -> Forward:
    """The forward of one cache group, on the network's device; see `serve.engine.forward.Builder`.

    Keeps no reference to `caches`, which may be dropped. Raises ValueError on a task or label the network lacks.
    """
    if task_type != network.task_type:
        raise ValueError(f"task type {task_type!r}, but the network was made for {network.task_type!r}")
    with torch.inference_mode():
        place = Place(next(network.parameters()).device, dtype, kv_dtype)
        head: list[Callable[[torch.Tensor], torch.Tensor]]
        if task_type == "multiclass":
            head = [Votes(network.many_class_decoder, caches, targets, place)]
        else:
            widen, _, output = network.output_projection  # type: ignore[misc]
            head = [place.exact_linear(widen), F.gelu, place.exact_linear(output)]
        return StagedForward(network, caches, _Cells(network, caches, place), head, place)


class _Cells:
    """Stage 0 (`_preprocess_raw`, `_group_features`, `x_embed`), in float32."""

    def __init__(self, network: Any, caches: Sequence[Any], place: Place) -> None:
        self._scaling = Scaling(caches, place)
        num_columns = caches[0].scaler_cache["mean"].shape[1]
        self._neighbours = find_neighbours(num_columns, network.feature_group_size, place)
        self._tells_missing: bool = network.use_nan_indicators
        self._embed = place.exact_linear(network.x_embed)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, R] to float32 [B, C, R, E]."""
        num_columns = values.shape[1]
        _, *told = self._scaling(values)
        parts = told if self._tells_missing else told[:1]
        grouped = [torch.unflatten(x.index_select(1, self._neighbours), 1, (num_columns, -1)) for x in parts]
        return self._embed(torch.cat(grouped, dim=2).transpose(2, 3))
