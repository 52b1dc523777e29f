"""v2's own forward against the library's, member by member, on the same network and the same caches."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tabpfn.architectures import ARCHITECTURES
from tabpfn.architectures.kv_cache import KVCacheEntry
from tabpfn.architectures.tabpfn_v2 import TabPFNV2Cache

from serve.engine.forward import v2

TINY = {"emsize": 48, "nlayers": 3, "nhead": 3, "max_num_classes": 10, "num_buckets": 20}
REGRESSION = {"max_num_classes": 0}
CONTEXT_ROWS = 40


@dataclass
class Group:
    """Members of equal width on one network, fitted by the library."""

    network: Any
    caches: list[TabPFNV2Cache]
    width: int

    @classmethod
    def fit(cls, width: int = 7, members: int = 2, classes: int = 3, seed: int = 0, **options: Any) -> Group:
        """`classes` 0 is a regression; some context cells are missing, every fifth column is constant."""
        network = _network(**(REGRESSION if classes == 0 else {}), **options)
        generator = torch.Generator().manual_seed(seed)
        caches = []
        for member in range(members):
            features = torch.randn(CONTEXT_ROWS, 1, width, generator=generator) * 3 + member
            features[torch.rand(features.shape, generator=generator) < 0.05] = math.nan
            features[:, :, 4::5] = 1.5
            labels = torch.randn(CONTEXT_ROWS, 1, generator=generator)
            if classes:
                labels = torch.randint(classes, (CONTEXT_ROWS, 1), generator=generator).float()
            caches.append(_fit(network, features, labels))
        return cls(network, caches, width)

    def rows(self, num_rows: int, seed: int = 1) -> torch.Tensor:
        """Test rows of every member; from the second row on with cells missing, infinite and far off."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(self.caches), num_rows, self.width, generator=generator) * 4
        odd = torch.rand(rows.shape, generator=generator)
        odd[:, 0] = 1
        for index, value in enumerate((math.nan, math.inf, -math.inf, 3e38, -3e38)):
            rows[(odd >= index * 0.04) & (odd < index * 0.04 + 0.04)] = value
        return rows

    def library(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            outputs = [
                self.network(member[:, None], None, kv_cache=cache, x_is_test_only=True)[:, 0]
                for member, cache in zip(rows, self.caches, strict=True)
            ]
        return torch.stack(outputs).float()

    def ours(self, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return v2.build(self.network, self.caches, torch.zeros(0), "multiclass", dtype)(rows)


def _network(seed: int = 0, **options: Any) -> Any:
    """Every projection drawn, those that start at zero too; cells' and output's large: answers differ by row."""
    config, unused = ARCHITECTURES["tabpfn_v2"].parse_config({**TINY, **options})
    assert not unused
    torch.manual_seed(seed)
    network = ARCHITECTURES["tabpfn_v2"].get_architecture(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
        for projection in (network.feature_group_embedder, network.output_projection[2]):
            projection.weight *= 8
    return network.eval()


def _fit(network: Any, features: torch.Tensor, labels: torch.Tensor) -> TabPFNV2Cache:
    with torch.inference_mode():
        _, cache = network(features, labels, return_kv_cache=True)
    assert isinstance(cache, TabPFNV2Cache)
    return cache


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference between probabilities of classes, or of the regressor's bars."""
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    return float((ours.softmax(-1) - theirs.softmax(-1)).abs().max())


def _check(group: Group, num_rows: int) -> None:
    rows = group.rows(num_rows)
    assert _distance(group.ours(rows), group.library(rows)) <= 1e-5


@pytest.mark.parametrize("classes", [0, *range(2, 11)])
def test_every_task_is_the_librarys(classes: int) -> None:
    _check(Group.fit(classes=classes), 7)


@pytest.mark.parametrize("per_group", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 12, 13, 200])
def test_every_width_is_the_librarys(width: int, per_group: int) -> None:
    _check(Group.fit(width=width, features_per_group=per_group), 5)


@pytest.mark.parametrize("members", [1, 8])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 32, 256])
def test_every_number_of_rows_is_the_librarys(num_rows: int, members: int) -> None:
    _check(Group.fit(members=members), num_rows)


@pytest.mark.parametrize("constant", [(0,), (1,), (0, 1), (2,), (1, 2, 3), (6,), (0, 2, 4, 6)])
def test_columns_constant_in_the_context_are_left_out_whatever_a_row_holds_there(constant: tuple[int, ...]) -> None:
    network = _network()
    features = torch.randn(CONTEXT_ROWS, 1, 7, generator=torch.Generator().manual_seed(0))
    features[:, :, list(constant)] = -2.0
    group = Group(network, [_fit(network, features, (features[:, :, 0] > features[:, :, 5]).float())], 7)
    rows = group.rows(6)
    given = rows.clone()
    answer = group.ours(rows)
    assert torch.equal(rows.nan_to_num(), given.nan_to_num()), "the caller's rows are left as they were"
    assert _distance(answer, group.library(rows)) <= 1e-5
    rows[:, :, list(constant)] = math.nan
    assert torch.equal(group.ours(rows), answer)


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_a_column_without_a_finite_value_in_the_context(missing: float) -> None:
    network = _network()
    features = torch.randn(CONTEXT_ROWS, 1, 4, generator=torch.Generator().manual_seed(0))
    labels = (features[:, :, 0] > 0).float()
    features[1:, :, 2] = missing
    features[0, :, 2] = math.nan
    _check(Group(network, [_fit(network, features, labels)], 4), 6)


def test_values_so_large_that_the_contexts_statistics_overflow() -> None:
    network = _network()
    features = torch.randn(CONTEXT_ROWS, 1, 4, generator=torch.Generator().manual_seed(0))
    labels = (features[:, :, 0] > 0).float()
    features[:, :, 1] = -3e36 * (1 + features[:, :, 1].abs())
    group = Group(network, [_fit(network, features, labels)], 4)
    assert torch.isinf(group.caches[0].feature_cache["scaler_std"]).any()
    rows = group.rows(6)
    rows[:, 0, 1] = 3.4e38
    answer = group.ours(rows)
    assert answer.isfinite().all()
    assert _distance(answer, group.library(rows)) <= 1e-5


def test_caches_that_hold_several_members_each() -> None:
    """The library's batch axis, laid end to end."""
    network = _network()
    features = torch.randn(CONTEXT_ROWS, 3, 6, generator=torch.Generator().manual_seed(0))
    features[:, 1, 2] = 0.5
    labels = (features[:, :, 0] > 0).float()
    caches = [_fit(network, features[:, :2], labels[:, :2]), _fit(network, features[:, 2:], labels[:, 2:])]
    rows = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = [
            network(part.transpose(0, 1), None, kv_cache=cache, x_is_test_only=True).transpose(0, 1)
            for part, cache in zip((rows[:2], rows[2:]), caches, strict=True)
        ]
    ours = v2.build(network, caches, labels.T, "multiclass", torch.float32)(rows)
    assert _distance(ours, torch.cat(theirs)) <= 1e-5


@pytest.mark.parametrize("classes", [0, 3])
def test_a_row_alone_is_the_row_in_company(classes: int) -> None:
    group = Group.fit(classes=classes)
    forward = v2.build(group.network, group.caches, torch.zeros(0), "multiclass", torch.float32)
    rows = group.rows(256)
    together = forward(rows).softmax(-1)
    for size in (1, 2, 7, 32):
        parts = torch.cat([forward(part) for part in rows[:, : 3 * size].split(size, dim=1)], dim=1)
        assert (parts.softmax(-1) - together[:, : 3 * size]).abs().max() <= 1e-6
    shuffle = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    assert (forward(rows[:, shuffle]).softmax(-1) - together[:, shuffle]).abs().max() <= 1e-6
    duplicated = forward(rows[:, :1].expand(-1, 32, -1)).softmax(-1)
    assert (duplicated - together[:, :1]).abs().max() <= 1e-6


@pytest.mark.parametrize("num_rows", [1, 5, 12])
def test_rows_cut_into_passes_and_tiles_are_rows_uncut(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group.fit()
    rows = group.rows(num_rows)
    uncut = group.library(rows)
    for tile_bytes in (1, CONTEXT_ROWS * 4 * 4, CONTEXT_ROWS * 4 * 3 * num_rows * 3):
        monkeypatch.setattr(v2, "_TILE_BYTES", tile_bytes)
        assert _distance(group.ours(rows), uncut) <= 1e-6
    for hidden_bytes in (1, len(group.caches) * 5 * TINY["emsize"] * 4 * 4 * 5):
        monkeypatch.setattr(v2, "_MAX_HIDDEN_BYTES", hidden_bytes)
        assert _distance(group.ours(rows), uncut) <= 1e-6


def test_the_fused_kernel_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA runs."""
    monkeypatch.setattr(v2, "_tiled", lambda _: False)
    _check(Group.fit(), 7)


@pytest.mark.parametrize(
    ("classes", "dtype", "bound"),
    [(classes, *limit) for classes in (0, 3) for limit in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3))],
)
def test_low_precision_is_no_farther_from_float32_than_the_librarys(
    classes: int, dtype: torch.dtype, bound: float
) -> None:
    group = Group.fit(classes=classes, nlayers=6)
    rows = group.rows(64)
    exact = group.library(rows)
    with torch.autocast("cpu", dtype):
        theirs = _distance(group.library(rows), exact)
    ours = _distance(group.ours(rows, dtype), exact)
    assert ours <= min(theirs, bound)


def test_what_all_keys_of_a_column_share_costs_no_precision() -> None:
    group = Group.fit()
    rows = group.rows(16)
    before = group.ours(rows, torch.bfloat16)
    with torch.inference_mode():
        for entry in (entry for cache in group.caches for entry in cache.kv.values()):
            entry.key += 20
    assert _distance(group.ours(rows, torch.bfloat16), before) <= 5e-3


def test_a_cache_built_under_autocast() -> None:
    """The library then draws the columns' embeddings in low precision; ours have to be those."""
    with torch.autocast("cpu", torch.bfloat16):
        group = Group.fit()
    assert group.caches[0].test_y_embedding.dtype == torch.bfloat16
    rows = group.rows(16)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = group.library(rows)
    assert _distance(group.ours(rows), theirs) <= 2e-2


@settings(max_examples=40)
@given(data=st.data())
def test_any_small_network_and_table_is_the_librarys(data: st.DataObject) -> None:
    heads = data.draw(st.integers(1, 4), label="heads")
    group = Group.fit(
        width=data.draw(st.sampled_from([2, 3, 5, 9, 16]), label="width"),
        members=data.draw(st.integers(1, 3), label="members"),
        classes=data.draw(st.sampled_from([0, 2, 10]), label="classes"),
        seed=data.draw(st.integers(0, 9), label="seed"),
        features_per_group=data.draw(st.sampled_from([1, 2]), label="features per group"),
        nhead=heads,
        emsize=heads * 4 * data.draw(st.integers(1, 5), label="quarter of a head"),
        nlayers=data.draw(st.integers(1, 3), label="layers"),
    )
    _check(group, data.draw(st.integers(1, 20), label="rows"))


def test_the_full_size_network() -> None:
    _check(Group.fit(width=5, members=1, emsize=192, nhead=6, nlayers=12), 3)


def test_what_we_lean_on_in_tabpfn_is_still_there() -> None:
    """Parity fails when tabpfn's mathematics change; this names what else we read."""
    group = Group.fit(nlayers=1)
    cache, network = group.caches[0], group.network
    assert [field.name for field in dataclasses.fields(TabPFNV2Cache)] == [
        "kv", "feature_cache", "test_y_embedding", "train_shape",
    ]  # fmt: skip
    assert set(cache.feature_cache) == {
        "column_selection_mask", "feature_means", "scaler_mean", "scaler_std",
        "ng_non_constant_mask", "ng_num_used_features",
    }  # fmt: skip
    assert cache.train_shape == (1, CONTEXT_ROWS)
    assert isinstance(cache.kv[0], KVCacheEntry)
    assert cache.kv[0].key.shape == (5, CONTEXT_ROWS, 1, 16)
    assert set(network.state_dict()) == {
        "feature_group_embedder.weight", "target_embedder.weight", "target_embedder.bias",
        "feature_positional_embedding_embeddings.weight", "feature_positional_embedding_embeddings.bias",
        *(f"output_projection.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
        *(
            f"blocks.0.per_{attention}.{projection}_projection.weight"
            for attention in ("sample_attention_between_features", "column_attention_between_cells")
            for projection in ("q", "k", "v", "out")
        ),
        "blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight",
    }  # fmt: skip
    block = network.blocks[0]
    norms = (block.layernorm_mha1, block.layernorm_mha2, block.layernorm_mlp)
    assert {(norm.eps, norm.elementwise_affine) for norm in norms} == {(1e-5, False)}
    for gelu in (block.mlp[1], network.output_projection[1]):
        assert isinstance(gelu, torch.nn.GELU)
        assert gelu.approximate == "none"
