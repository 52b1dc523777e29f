"""What v2.5 and v2.6 have that v2 has not; the rest of their parity is in test_v2.py."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tabpfn.architectures.kv_cache import KVCacheEntry
from tabpfn.architectures.tabpfn_v2_5 import TabPFNV2p5Cache
from tabpfn.architectures.tabpfn_v2_6 import TabPFNV2p6Cache
from v2_harness import BUILDERS, CONTEXT_ROWS, THINKING, Group, check, distance, draw_network, fit
from v3_harness import Recorder

from serve.engine.forward import Group as CacheGroup

CACHES = {"tabpfn_v2_5": TabPFNV2p5Cache, "tabpfn_v2_6": TabPFNV2p6Cache}
both = pytest.mark.parametrize("arch", CACHES)


def mixed_group(arch: str) -> Group:
    """Members of one width that keep 7, 4, 7 and 0 columns: 3, 2, 3 and no groups."""
    network = draw_network(arch)
    caches = []
    for seed, constant in enumerate(((), (0, 2, 5), (), tuple(range(7)))):
        features = torch.randn(CONTEXT_ROWS, 1, 7, generator=torch.Generator().manual_seed(seed))
        labels = (features[:, :, 0] > features[:, :, 5]).float()
        features[:, :, list(constant)] = 0.5
        caches.append(fit(network, features, labels))
    return Group(arch, network, caches, 7)


@both
def test_members_that_keep_other_numbers_of_columns(arch: str) -> None:
    group = mixed_group(arch)
    assert [cache.kv[0].key.shape[0] for cache in group.caches] == [4, 3, 4, 1]
    check(group, 9)


@both
def test_caches_of_several_members_among_others(arch: str) -> None:
    """Among others, a member keeps zeros in place of its constant columns."""
    network = draw_network(arch)
    features = torch.randn(CONTEXT_ROWS, 4, 7, generator=torch.Generator().manual_seed(0))
    labels = (features[:, :, 0] > 0).float()
    features[:, 0, 3:] = 0.5
    features[:, 1, 2] = 0.5
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    caches = [fit(network, features[:, part], labels[:, part]) for part in parts]
    rows = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = [
            network(rows[part].transpose(0, 1), None, kv_cache=cache, x_is_test_only=True).transpose(0, 1)
            for part, cache in zip(parts, caches, strict=True)
        ]
    got = BUILDERS[arch](network, [CacheGroup(caches, labels.T)], "multiclass", torch.float32)(rows)
    assert distance(got, torch.cat(expected)) <= 1e-5


@both
def test_a_group_embedded_by_two_layers(arch: str) -> None:
    check(Group.fit(arch, encoder_type="mlp", encoder_mlp_hidden_dim=100), 7)


@both
@pytest.mark.parametrize("thinking", [0, 1, 64])
def test_any_number_of_thinking_rows(arch: str, thinking: int) -> None:
    check(Group.fit(arch, num_thinking_rows=thinking), 7)


@both
def test_column_embeddings_come_from_tabpfns_table_where_it_is_as_wide(arch: str) -> None:
    """2,003 groups at the released width: the last three are drawn, as in any other width."""
    network = draw_network(arch, emsize=192, nlayers=1, features_per_group=1)
    assert network.pre_generated_column_embeddings.shape == (2000, 48)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 1, 2003, generator=generator)
    group = Group(arch, network, [fit(network, features, (features[:, :, 0] > 0).float())], 2003)
    check(group, 1)
    network.pre_generated_column_embeddings += 1
    assert distance(group.compiled(group.rows(1)), group.tabpfn(group.rows(1))) <= 1e-5, "the network's table is read"


@both
@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 3])
def test_the_full_size_network(arch: str, classes: int) -> None:
    check(Group.fit(arch, width=9, classes=classes, emsize=192, nlayers=24, num_thinking_rows=64), 17)


@both
def test_a_call_never_waits_for_the_device(arch: str) -> None:
    group = mixed_group(arch)
    forward, rows = group.build(), group.rows(9)
    with Recorder() as got:
        forward(rows)
    assert got.waits == set()


@both
def test_neither_caches_nor_rows_are_changed_or_needed_afterwards(arch: str) -> None:
    group = mixed_group(arch)
    rows = group.rows(5)
    forward, kept, expected = group.build(), rows.clone(), group.tabpfn(rows)
    for cache in group.caches:
        cache.kv.clear()
    assert distance(forward(rows), expected) <= 1e-5
    assert torch.equal(forward(rows), forward(rows))
    assert torch.equal(rows.nan_to_num(math.pi), kept.nan_to_num(math.pi))


@both
def test_what_we_lean_on_in_tabpfn_is_still_there(arch: str) -> None:
    """Parity fails when tabpfn's mathematics change; this names what else we read."""
    group = Group.fit(arch, nlayers=1)
    cache, network = group.caches[0], group.network
    assert type(cache) is CACHES[arch]
    assert [field.name for field in dataclasses.fields(cache)] == [
        "kv", "scaler_cache", "feature_state", "test_y_embedding", "train_shape",
    ]  # fmt: skip
    assert set(cache.scaler_cache) == {"mean", "std"}
    assert set(cache.feature_state) == {"column_mask", "normalize_mask", "normalize_used"}
    assert cache.train_shape == (1, CONTEXT_ROWS)
    assert isinstance(cache.kv[0], KVCacheEntry)
    assert cache.kv[0].key.shape == (3, CONTEXT_ROWS + THINKING["num_thinking_rows"], 1, 16)
    norms = ("layernorm_mha1", "layernorm_mha2", "layernorm_mlp")
    assert set(network.state_dict()) == {
        "feature_group_embedder.weight", "target_embedder.weight", "target_embedder.bias",
        "feature_positional_embedding_embeddings.weight", "feature_positional_embedding_embeddings.bias",
        "add_thinking_rows.row_token_values_TE",
        *(f"output_projection.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
        *(
            f"blocks.0.per_{attention}.{projection}_projection.weight"
            for attention in ("sample_attention_between_features", "column_attention_between_cells")
            for projection in ("q", "k", "v", "out")
        ),
        *(f"blocks.0.{norm}.weight" for norm in norms if arch == "tabpfn_v2_6"),
        "blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight",
    }  # fmt: skip
    block = network.blocks[0]
    kind, eps = (torch.nn.RMSNorm, None) if arch == "tabpfn_v2_6" else (torch.nn.LayerNorm, 1e-5)
    for norm in (getattr(block, name) for name in norms):
        assert isinstance(norm, kind)
        assert norm.eps == eps
    for gelu in (block.mlp[1], network.output_projection[1]):
        assert isinstance(gelu, torch.nn.GELU)
        assert gelu.approximate == "none"
