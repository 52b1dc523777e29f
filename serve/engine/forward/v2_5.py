"""The test-only forward pass of tabpfn_v2_5 and tabpfn_v2_6: v2's layers (`v2_layers.py`) on other cells.

They differ from v2 as follows:
- columns that are constant in the context are removed before columns are grouped, not within each group. So members of
  a group may keep different numbers of columns, and have different numbers of tokens. Members with equal numbers are
  one part of the pass;
- the scaler's mean, which is that of the finite values, replaces a missing value;
- a group's embedding may have a hidden layer (`encoder_type="mlp"`);
- the columns' random embeddings come from a table inside tabpfn where its width is theirs (emsize 192, the default).
  Otherwise, and past the table's 2,000 columns, they are drawn on the device, as in v2;
- the hidden layers are half as wide; v2.6 has RMS norms with weights;
- thinking rows precede the context's rows in the cached keys and values, and need no code here.

`TabPFNV2p5.forward` and `TabPFNV2p6.forward` (x_is_test_only=True) are the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from serve.engine.forward import Forward, Group
from serve.engine.forward.v2_cells import Cells, Part, draw_columns, find_sources
from serve.engine.forward.v2_pass import build_forward

_SEED = 42
"""Seed of the columns' embeddings in tabpfn's `_add_column_embeddings`."""


def build(
    network: torch.nn.Module,
    groups: Sequence[Group],
    task_type: str,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
) -> Forward:
    """See `serve.engine.forward.Builder`. The caches are of TabPFNV2p5Cache or TabPFNV2p6Cache."""
    # Neither the task nor shared columns matter: the cache holds the target column's embedding, and cells are cheap.
    del task_type
    with torch.inference_mode():
        parts = [part for number, group in enumerate(groups) for part in _divide(network, number, group.caches)]
        return build_forward(network, parts, dtype, kv_dtype or dtype)


def _divide(network: torch.nn.Module, number: int, caches: Sequence[Any]) -> list[Part]:
    """One part of the group for each number of columns that its members have."""
    by_columns: dict[int, list[int]] = {}
    for index, cache in enumerate(caches):
        by_columns.setdefault(_count_columns(cache), []).append(index)
    sizes, device = [cache.train_shape[0] for cache in caches], caches[0].test_y_embedding.device
    positions = torch.split(torch.arange(sum(sizes), device=device), sizes)
    parts = []
    for indices in by_columns.values():
        own = [caches[index] for index in indices]
        members = None if len(by_columns) == 1 else torch.cat([positions[index] for index in indices])
        parts.append(Part(number, members, own, _read_cells(network, own)))
    return parts


def _count_columns(cache: Any) -> int:
    """Number of columns of tokens, the target column included."""
    return int(cache.kv[0].key.shape[0]) // int(cache.train_shape[0])


def _read_cells(network: Any, caches: Sequence[Any]) -> Cells:
    def stack(part: str, key: str) -> torch.Tensor:
        return torch.cat([getattr(cache, part)[key] for cache in caches])

    kept = stack("feature_state", "column_mask").bool()
    num_groups, embedder = _count_columns(caches[0]) - 1, network.feature_group_embedder
    mean, width = stack("scaler_cache", "mean"), kept.shape[1]
    # As tabpfn selects: constant columns are removed where a member is alone, and become zeros where it has company.
    sources = find_sources(kept[:, None])
    return Cells.make(
        network,
        caches,
        _draw_columns(network, num_groups, caches[0].test_y_embedding),
        functional.pad(sources, (0, num_groups * network.features_per_group - width), value=width),
        width,
        [embedder[0], embedder[2]] if isinstance(embedder, torch.nn.Sequential) else [embedder],
        fill=mean,
        mean=mean,
        deviation=stack("scaler_cache", "std"),
        used=stack("feature_state", "normalize_mask"),
        num_used=stack("feature_state", "normalize_used"),
    )


def _draw_columns(network: Any, num_groups: int, like: torch.Tensor) -> torch.Tensor:
    drawn, table = draw_columns(network, num_groups, _SEED, like), network.pre_generated_column_embeddings
    if drawn.shape[1] == table.shape[1]:
        drawn[: len(table)] = table[:num_groups].to(drawn)
    return drawn
