"""Random checkpoints that tabpfn loads, and synthetic contexts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tabpfn.checkpoint import Checkpoint
from tabpfn.settings import settings

from benchmarks.offline.architectures import (
    ARCHITECTURES,
    MISSING_SHARE,
    draw_network,
    large_contexts_on_cpu,
    synthetic_model,
    write_checkpoint,
)
from benchmarks.offline.sides import Case, TabPFNSide
from serve.core import ColumnKind

TINY = {
    "v2": {"max_num_classes": 10, "emsize": 32, "nlayers": 1, "nhead": 2},
    "v2_5": {"max_num_classes": 10, "emsize": 32, "nlayers": 1, "nhead": 2},
    "v2_6": {"max_num_classes": 10, "emsize": 32, "nlayers": 1, "nhead": 2},
    "v3": {"max_num_classes": 10, "embed_dim": 16, "nlayers": 1, "dist_embed_num_blocks": 1, "feat_agg_num_blocks": 1},
    "v3_5": {
        "max_num_classes": 10, "num_buckets": 20, "embed_dim": 16, "nlayers": 1, "dist_embed_num_blocks": 1,
        "feat_agg_num_blocks": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tabpfn_loads_a_random_checkpoint_and_every_column_moves_its_answer(arch: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(arch, tmp_path, config=TINY[arch])
    assert ARCHITECTURES[arch].version.value in checkpoint.name
    side = TabPFNSide(Case("tiny", arch, synthetic_model("tiny", checkpoint, 30, 4, 2)), "cpu")
    rows = np.repeat(side.context_rows[:1], 5, axis=0)
    for column in range(4):
        other = side.context_rows[:, column]
        rows[column + 1, column] = other[np.isfinite(other) & (other != rows[0, column])][0]
    answers = side.exact_answers({5: rows})[5]
    assert answers.shape == (5, 2)
    assert np.all(np.abs(answers[1:] - answers[0]).max(axis=1) > 1e-6)


@pytest.mark.parametrize("arch", ["v2", "v3_5"])
def test_weights_are_drawn_from_the_seed_and_none_is_zero(arch: str) -> None:
    architecture = ARCHITECTURES[arch]
    before = torch.get_rng_state()
    first, again, other = (draw_network(architecture, seed, TINY[arch]) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    states = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert all(parameter.any() for parameter in first.parameters())


def test_the_checkpoint_names_its_architecture(tmp_path: Path) -> None:
    stored = Checkpoint(write_checkpoint("v3_5", tmp_path, config=TINY["v3_5"])).load()
    assert stored["architecture_name"] == "tabpfn_v3_5"
    assert stored["config"]["embed_dim"] == 16
    assert stored["inference_config"]["FINGERPRINT_FEATURE"] is True


def test_an_unknown_setting_of_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know"):
        draw_network(ARCHITECTURES["v3_5"], 0, {**TINY["v3_5"], "wings": 2})


@pytest.mark.parametrize(("features", "num_categories"), [(1, 0), (2, 0), (3, 1), (30, 3), (100, 10)])
def test_a_synthetic_context_has_numbers_categories_and_missing_values(features: int, num_categories: int) -> None:
    context = synthetic_model("x", Path("x-v2.safetensors"), 200, features, 4, seed=5).context
    kinds = [column.kind for column in context.columns]
    assert (len(kinds), kinds.count(ColumnKind.CATEGORY)) == (features, num_categories)
    cells = [cell for column in context.cells.values() for cell in column]
    assert len(cells) == 200 * features
    assert 0 < cells.count(None) / len(cells) < 3 * MISSING_SHARE
    assert set(context.target) == {"0", "1"}
    assert synthetic_model("x", Path("x-v2.safetensors"), 200, features, 4, seed=5).context == context
    assert synthetic_model("x", Path("x-v2.safetensors"), 200, features, 4, seed=6).context != context


def test_tabpfn_takes_more_rows_on_a_cpu_only_inside_the_block() -> None:
    before = settings.tabpfn.allow_cpu_large_dataset
    with large_contexts_on_cpu():
        assert settings.tabpfn.allow_cpu_large_dataset
    assert settings.tabpfn.allow_cpu_large_dataset == before
