"""The test-only forward pass of tabpfn_v2: the layers of `v2_layers.py` on cells that the cache's statistics describe.

`TabPFNV2.forward(x, kv_cache=..., x_is_test_only=True)` is the reference (tabpfn/architectures/tabpfn_v2.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from serve.engine.forward import Forward, Group
from serve.engine.forward.v2_cells import Cells, Part, draw_columns, find_sources
from serve.engine.forward.v2_pass import build_forward


def build(
    network: torch.nn.Module,
    groups: Sequence[Group],
    task_type: str,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
) -> Forward:
    """See `serve.engine.forward.Builder`. The caches are of TabPFNV2Cache."""
    # Neither the task nor shared columns matter: the cache holds the target column's embedding, and cells are cheap.
    del task_type
    with torch.inference_mode():
        parts = [
            Part(number, None, group.caches, _read_cells(network, group.caches)) for number, group in enumerate(groups)
        ]
        return build_forward(network, parts, dtype, kv_dtype or dtype)


def _read_cells(network: Any, caches: Sequence[Any]) -> Cells:
    def stack(key: str) -> torch.Tensor:
        return torch.cat([cache.feature_cache[key] for cache in caches])

    num_members = sum(cache.train_shape[0] for cache in caches)
    kept = torch.unflatten(stack("column_selection_mask").bool(), 0, (num_members, -1))
    return Cells.make(
        network,
        caches,
        draw_columns(network, kept.shape[1], network.seed, caches[0].test_y_embedding),
        find_sources(kept),
        kept[0].numel(),
        [network.feature_group_embedder],
        fill=stack("feature_means"),
        mean=stack("scaler_mean"),
        deviation=stack("scaler_std"),
        used=stack("ng_non_constant_mask"),
        num_used=stack("ng_num_used_features"),
    )
