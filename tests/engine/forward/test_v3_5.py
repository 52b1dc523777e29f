"""The compiled forward passes of v3 and v3.5 against tabpfn's own cached forward, same weights and same cache."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tabpfn.architectures.kv_cache import KVCacheEntry, QuantizedKVCacheEntry
from tabpfn.architectures.tabpfn_v3_5 import TabPFNV3p5Cache
from v3_harness import ARCHITECTURES, Fitted, Recorder, assert_parity, build_joined, draw_rows, fit, shares

READ = {
    "x_embed": "fourier.frequencies fourier.in_linear.weight layernorm.bias layernorm.weight metadata_linear.weight",
    "feature_distribution_embedder.layers.cross_attn_block2": (
        "attn.k_norm.weight attn.k_projection.weight attn.out_projection.weight attn.q_norm.weight "
        "attn.q_projection.weight attn.v_projection.weight layernorm2.weight layernorm_kv.weight layernorm_q.weight "
        "mlp.weight"
    ),
    "column_aggregator": (
        "blocks.attention.k_norm.weight blocks.attention.k_projection.weight blocks.attention.out_projection.weight "
        "blocks.attention.q_norm.weight blocks.attention.q_projection.weight blocks.attention.v_projection.weight "
        "blocks.layernorm.weight blocks.layernorm_mlp.weight blocks.mlp.weight cls_tokens out_ln.weight rope.freqs"
    ),
    "icl_blocks": (
        "icl_attention.out_projection.weight icl_attention.q_norm.weight icl_attention.q_projection.weight "
        "icl_attention.softmax_scaling_layer.base_mlp.bias icl_attention.softmax_scaling_layer.base_mlp.weight "
        "icl_attention.softmax_scaling_layer.query_mlp.bias icl_attention.softmax_scaling_layer.query_mlp.weight "
        "layernorm.weight layernorm_mlp.weight mlp.weight"
    ),
    "output_norm": "weight",
    "heads": (
        "many_class_decoder.q_projection.bias many_class_decoder.q_projection.weight "
        "many_class_decoder.softmax_scaling_layer.base_mlp.bias "
        "many_class_decoder.softmax_scaling_layer.base_mlp.weight "
        "many_class_decoder.softmax_scaling_layer.query_mlp.bias "
        "many_class_decoder.softmax_scaling_layer.query_mlp.weight mlp_classification.mlp.weight "
        "mlp_classification.norm.weight mlp_regression.mlp.weight mlp_regression.norm.weight output_projection.bias "
        "output_projection.weight"
    ),
}
"""The parameters that the compiled pass reads, without layer indices; the cache holds the results of the rest."""
CACHED = re.compile(
    r"(col_y_|icl_y_|feature_distribution_embedder\.layers\.(cross_attn_block1|inducing_vectors)"
    r"|icl_blocks\.icl_attention\.(k_norm|[kv]_projection)|heads\.many_class_decoder\.k_projection).*"
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def classifier(arch: str) -> Fitted:
    return fit(arch)


@pytest.fixture(scope="module")
def regressor(arch: str) -> Fitted:
    return fit(arch, "regression")


@pytest.mark.parametrize("num_rows", [1, 2, 7, 32, 256])
def test_equals_tabpfn_at_every_number_of_rows(classifier: Fitted, regressor: Fitted, num_rows: int) -> None:
    for fitted in (classifier, regressor):
        assert_parity(fitted, draw_rows(fitted, num_rows))


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_groups_of_unequal_width_pass_together(arch: str, task: str) -> None:
    """The second group knows a class fewer, and has two caches."""
    wide, narrow = fit(arch, task, width=9), fit(arch, task, width=5, sizes=(2, 1), labels=(0, 1))
    rows = draw_rows(wide, 20, 9), draw_rows(narrow, 20, 5)
    together = build_joined(wide, narrow)(*rows)
    expected = torch.cat([wide.tabpfn(rows[0]), narrow.tabpfn(rows[1])])
    torch.testing.assert_close(together.log_softmax(-1), expected.log_softmax(-1), rtol=2e-6, atol=1e-5)
    with pytest.raises(ValueError, match="argument"):
        build_joined(wide, narrow)(rows[0])


def test_answers_depend_on_the_row(classifier: Fitted, regressor: Fitted) -> None:
    """Else parity would say little."""
    for fitted in (classifier, regressor):
        spread = shares(fitted.build()(draw_rows(fitted, 64))).std(dim=1).amax(-1)
        assert (spread > 5e-3).all(), spread


@pytest.mark.parametrize(
    "labels", [(0, 1), (0,), (1,), (0, 3, 5), (9,), *(tuple(range(n)) for n in range(3, 11))], ids=str
)
def test_equals_tabpfn_for_any_classes(arch: str, labels: tuple[int, ...]) -> None:
    fitted = fit(arch, labels=labels)
    assert_parity(fitted, draw_rows(fitted, 20))


def test_equals_tabpfn_when_members_see_different_classes(arch: str) -> None:
    first, second = (fit(arch, sizes=(1,), labels=labels) for labels in ((0, 1), (2, 7)))
    fitted = dataclasses.replace(
        first, caches=[*first.caches, *second.caches], targets=torch.cat([first.targets, second.targets], 1)
    )
    assert_parity(fitted, draw_rows(fitted, 9))


def test_a_context_row_without_a_label_votes_for_no_class() -> None:
    fitted = fit("tabpfn_v3_5")
    fitted.targets[5], fitted.targets[6] = torch.nan, torch.nan
    assert_parity(fitted, draw_rows(fitted, 9))


@pytest.mark.parametrize("task", ["multiclass", "regression"])
@pytest.mark.parametrize("width", [1, 2, 200])
def test_equals_tabpfn_at_any_width(arch: str, task: str, width: int) -> None:
    """200 columns x 100 rows x 2 members also pass the column stages in several parts."""
    fitted = fit(arch, task, sizes=(2,), width=width)
    assert_parity(fitted, draw_rows(fitted, 100, width))


@pytest.mark.parametrize("task", ["multiclass", "regression"])
@pytest.mark.parametrize("quantized", [False, True], ids=["dense", "int8"])
def test_equals_tabpfn_for_a_cache_in_parts(arch: str, task: str, quantized: bool) -> None:
    fitted = fit(arch, task, sizes=(2, 1, 3), quantized=quantized)
    assert isinstance(fitted.caches[0].kv[0], QuantizedKVCacheEntry if quantized else KVCacheEntry)
    assert_parity(fitted, draw_rows(fitted, 20))


@pytest.mark.parametrize(
    "config",
    [
        {"icl_num_kv_heads_test": None}, {"icl_num_kv_heads_test": 2}, {"icl_num_kv_heads_test": 4},
        {"icl_num_kv_heads": 2, "icl_num_kv_heads_test": None}, {"feat_agg_num_blocks": 1}, {"feature_group_size": 1},
        {"decoder_use_softmax_scaling": False}, {"decoder_use_softmax_scaling": True},
    ],
    ids=str,
)  # fmt: skip
def test_equals_tabpfn_in_other_shapes_of_network(arch: str, config: dict[str, Any]) -> None:
    fitted = fit(arch, **config)
    assert_parity(fitted, draw_rows(fitted, 20))


def test_equals_tabpfn_on_a_context_of_which_votes_are_counted_in_parts(arch: str) -> None:
    fitted = fit(arch, sizes=(4,), num_rows=1_500, width=2)
    assert_parity(fitted, draw_rows(fitted, 256, 2))


def test_equals_tabpfn_at_full_width(arch: str) -> None:
    """Two blocks of the default configuration: large enough weights are packed for oneDNN.

    Probabilities only: with such weights the logarithms of both float32 answers are 2e-4 from those of float64.
    """
    config = dict(
        num_buckets=500, nlayers=2, embed_dim=128, dist_embed_num_blocks=1, dist_embed_num_heads=8,
        dist_embed_num_inducing_points=128, feat_agg_num_blocks=2, feat_agg_num_heads=8, feat_agg_num_cls_tokens=8,
        icl_num_heads=16, decoder_head_dim=64, decoder_num_heads=6, softmax_scaling_mlp_hidden_dim=64,
        **({"fourier_encoding_num_frequencies": 32} if arch == "tabpfn_v3_5" else {}),
    )  # fmt: skip
    for task in ("multiclass", "regression"):
        fitted = fit(arch, task, sizes=(2,), **config)
        for num_rows in (1, 33):
            rows = draw_rows(fitted, num_rows)
            got, expected = shares(fitted.build()(rows)), shares(fitted.tabpfn(rows))
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert ((expected.std(dim=1) / expected.mean(dim=1)).amax(-1) > 3e-3).all()


@settings(max_examples=25, deadline=None)
@given(
    task=st.sampled_from(["multiclass", "regression"]),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    context_rows=st.integers(6, 60),
    width=st.integers(1, 12),
    num_rows=st.integers(1, 40),
    num_labels=st.integers(1, 6),
    kv_heads=st.sampled_from([None, 1, 2]),
    buckets=st.sampled_from([3, 16, 8192]),
    quantized=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_equals_tabpfn_for_random_tables(
    arch: str, task: str, sizes: list[int], context_rows: int, width: int, num_rows: int, num_labels: int,
    kv_heads: int | None, buckets: int, quantized: bool, seed: int,
) -> None:  # fmt: skip
    config = {"cell_ecdf_num_buckets": buckets} if arch == "tabpfn_v3_5" else {}
    fitted = fit(
        arch, task, sizes=sizes, num_rows=context_rows, width=width, labels=range(num_labels), quantized=quantized,
        seed=seed, icl_num_kv_heads_test=kv_heads, **config,
    )  # fmt: skip
    assert_parity(fitted, draw_rows(fitted, num_rows, width, seed))


@pytest.mark.parametrize("num_rows", [1, 2, 7, 32])
def test_a_row_is_answered_as_in_company(classifier: Fitted, regressor: Fitted, num_rows: int) -> None:
    for fitted in (classifier, regressor):
        forward, rows = fitted.build(), draw_rows(fitted, 256)
        together = shares(forward(rows))
        for start in (0, 100, 256 - num_rows):
            some = slice(start, start + num_rows)
            torch.testing.assert_close(shares(forward(rows[:, some])), together[:, some], rtol=0, atol=1e-6)
        order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(shares(forward(rows[:, order])), together[:, order], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.01), (torch.float16, 0.002)], ids=str)
def test_half_precision_is_near(classifier: Fitted, regressor: Fitted, dtype: torch.dtype, bound: float) -> None:
    """Largest difference of a probability; rows differ by 0.06 and more. Measured: 0.003 and 0.0004."""
    for fitted in (classifier, regressor):
        rows = draw_rows(fitted, 64)
        got = fitted.build(dtype)(rows)
        assert got.dtype == torch.float32
        assert (shares(got) - shares(fitted.tabpfn(rows))).abs().max() < bound


def test_neither_caches_nor_rows_are_changed_or_needed_afterwards(arch: str) -> None:
    fitted = fit(arch, quantized=True)
    rows = draw_rows(fitted, 5)
    forward, kept, expected = fitted.build(), rows.clone(), fitted.tabpfn(rows)
    for cache in fitted.caches:
        cache.kv.clear()
    torch.testing.assert_close(forward(rows), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(forward(rows), forward(rows), rtol=0, atol=0)
    torch.testing.assert_close(rows, kept, rtol=0, atol=0, equal_nan=True)


def test_refuses_what_the_network_does_not_know(classifier: Fitted, regressor: Fitted) -> None:
    with pytest.raises(ValueError, match="task type 'ranking'"):
        dataclasses.replace(classifier, task="ranking").build()
    with pytest.raises(ValueError, match="label 12, but the network has only 10 classes"):
        dataclasses.replace(classifier, targets=torch.full_like(classifier.targets, 12)).build()
    with pytest.raises(ValueError, match=r"no decoder keys|made for 'regression'"):
        dataclasses.replace(regressor, task="multiclass", targets=classifier.targets).build()


def test_a_call_never_waits_for_the_device(classifier: Fitted, regressor: Fitted) -> None:
    for fitted in (classifier, regressor):
        forward, rows = fitted.build(), draw_rows(fitted, 9)
        with Recorder() as got:
            forward(rows)
        assert got.waits == set()
    with Recorder() as expected:
        classifier.tabpfn(rows)
    assert expected.waits, "tabpfn's forward waits; the recorder must see it"


@pytest.mark.parametrize("buckets", [2, 5, 40])
def test_ranks_among_few_edges_are_tabpfns(buckets: int) -> None:
    fitted = fit("tabpfn_v3_5", cell_ecdf_num_buckets=buckets)
    assert_parity(fitted, draw_rows(fitted, 20))


def test_tabpfn_still_has_what_the_compiled_pass_reads() -> None:
    """Another set of names, or of fields, means that tabpfn computes something that the compiled pass does not."""
    fitted = fit("tabpfn_v3_5")
    network, (cache,) = fitted.network, fitted.caches
    names = {re.sub(r"\.\d+(?=\.)", "", name) for name, _ in network.named_parameters()}
    read = {f"{owner}.{name}" for owner, some in READ.items() for name in some.split()}
    assert {name for name in names if not CACHED.fullmatch(name)} == read
    fields = {"kv", "decoder_keys", "train_shape", "scaler_cache", "ecdf_context", "inducing_hidden"}
    assert {field.name for field in dataclasses.fields(TabPFNV3p5Cache)} == fields
    assert set(cache.scaler_cache) == {"mean", "std"}
    assert all(layer.cross_attn_block2.attn.softmax_scaling_layer is None
               for layer in network.feature_distribution_embedder.layers)  # fmt: skip
    assert not network.column_aggregator.rope.interleaved
    for mlp in (network.icl_blocks[0].mlp, network.heads.mlp_regression.mlp):
        assert [type(layer).__name__ for layer in mlp] == ["Linear", "GELU", "Linear"]
        assert mlp[1].approximate == "none"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_call_is_recorded_as_a_cuda_graph(classifier: Fitted, dtype: torch.dtype) -> None:
    fitted = dataclasses.replace(
        classifier,
        network=copy.deepcopy(classifier.network).cuda(),
        caches=[cache.to("cuda") for cache in classifier.caches],
        targets=classifier.targets.cuda(),
    )
    forward, rows = fitted.build(dtype), draw_rows(fitted, 8).cuda()
    expected, graph = forward(rows), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = forward(rows)
    rows.copy_(rows.flip(1))
    graph.replay()
    torch.testing.assert_close(answer.flip(1), expected, rtol=0, atol=1e-5)
