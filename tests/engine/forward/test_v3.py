"""What v3 has that v3.5 has not; the rest of its parity is in test_v3_5.py."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from tabpfn.architectures.tabpfn_v3 import TabPFNV3Cache
from v3_harness import assert_parity, draw_rows, fit, shares

BLOCK = "out_projection.weight q_projection.weight k_projection.weight v_projection.weight"
READ = {
    "x_embed": "weight bias",
    "feature_distribution_embedder.layers.cross_attn_block2.attn": BLOCK,
    "feature_distribution_embedder.layers.cross_attn_block2": (
        "layernorm2.weight layernorm_kv.weight layernorm_q.weight mlp.weight"
    ),
    "column_aggregator.blocks.attention": BLOCK,
    "column_aggregator": (
        "blocks.layernorm.weight blocks.layernorm_mlp.weight blocks.mlp.weight cls_tokens out_ln.weight rope.freqs"
    ),
    "icl_blocks": (
        "icl_attention.out_projection.weight icl_attention.q_projection.weight "
        "icl_attention.softmax_scaling_layer.base_mlp.bias icl_attention.softmax_scaling_layer.base_mlp.weight "
        "icl_attention.softmax_scaling_layer.query_mlp.bias icl_attention.softmax_scaling_layer.query_mlp.weight "
        "layernorm.weight layernorm_mlp.weight mlp.weight"
    ),
    "output_norm": "weight",
}
"""The parameters that the compiled pass reads, without layer indices; the cache holds the results of the rest."""
HEADS = {
    "multiclass": {"many_class_decoder.q_projection.weight", "many_class_decoder.q_projection.bias"},
    "regression": {"output_projection.weight", "output_projection.bias"},
}
CACHED = re.compile(
    r"(col_y_|icl_y_|feature_distribution_embedder\.layers\.(cross_attn_block1|inducing_vectors)"
    r"|icl_blocks\.icl_attention\.[kv]_projection|many_class_decoder\.k_projection).*"
)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
@pytest.mark.parametrize(
    "config", [{"use_nan_indicators": False}, {"use_rope": False}, {"layernorm_elementwise_affine": False}], ids=str
)
def test_equals_tabpfn_in_shapes_that_v3_alone_has(task: str, config: dict[str, Any]) -> None:
    fitted = fit("tabpfn_v3", task, **config)
    assert_parity(fitted, draw_rows(fitted, 20))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_equals_tabpfn_near_full_size(task: str) -> None:
    """The default configuration's own size, with twelve of its 24 last blocks.

    Probabilities only, as in test_v3_5.py.
    """
    full = {
        "embed_dim": 128, "dist_embed_num_blocks": 3, "dist_embed_num_heads": 8, "dist_embed_num_inducing_points": 128,
        "feat_agg_num_blocks": 3, "feat_agg_num_heads": 8, "feat_agg_num_cls_tokens": 4, "nlayers": 12,
        "icl_num_heads": 8, "decoder_head_dim": 64, "decoder_num_heads": 6, "softmax_scaling_mlp_hidden_dim": 64,
        "num_buckets": 5_000,
    }  # fmt: skip
    fitted = fit("tabpfn_v3", task, sizes=(2,), num_rows=200, width=12, **full)
    rows = draw_rows(fitted, 33, 12)
    got, expected = shares(fitted.build()(rows)), shares(fitted.tabpfn(rows))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (expected.std(dim=1) / expected.mean(dim=1)).amax() > 1e-3


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_tabpfn_still_has_what_the_compiled_pass_reads(task: str) -> None:
    """Another set of names, or of fields, means that tabpfn computes something that the compiled pass does not."""
    fitted = fit("tabpfn_v3", task)
    network, (cache,) = fitted.network, fitted.caches
    assert network.task_type == task
    names = {re.sub(r"\.\d+(?=\.)", "", name) for name, _ in network.named_parameters()}
    read = {f"{owner}.{name}" for owner, some in READ.items() for name in some.split()} | HEADS[task]
    assert {name for name in names if not CACHED.fullmatch(name)} == read
    fields = {"kv", "decoder_keys", "train_shape", "scaler_cache", "inducing_hidden"}
    assert {field.name for field in dataclasses.fields(TabPFNV3Cache)} == fields
    assert set(cache.scaler_cache) == {"mean", "std"}
    assert all(layer.cross_attn_block2.attn.softmax_scaling_layer is None
               for layer in network.feature_distribution_embedder.layers)  # fmt: skip
    assert not network.column_aggregator.rope.interleaved
    mlps = [network.icl_blocks[0].mlp, *([network.output_projection] if task == "regression" else [])]
    for mlp in mlps:
        assert [type(layer).__name__ for layer in mlp] == ["Linear", "GELU", "Linear"]
        assert mlp[1].approximate == "none"
