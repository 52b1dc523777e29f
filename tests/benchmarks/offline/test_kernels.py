"""The kernels of a forward pass stay within their budget, and the command counts them right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from pretend_cuda import Launch

from benchmarks.offline import kernels
from benchmarks.offline.architectures import ARCHITECTURES, synthetic_model, write_checkpoint
from benchmarks.offline.gpus import GPUS, gpus_of, times_ms
from benchmarks.offline.kernels import PRECISIONS, KernelOptions, counted_rows, run_kernels
from benchmarks.offline.launches import count_launches, extend, fit
from serve.core import Task

EMBEDDING = {
    "embed_dim": 16, "dist_embed_num_heads": 2, "dist_embed_num_inducing_points": 4, "feat_agg_num_heads": 2,
    "feat_agg_num_cls_tokens": 2, "icl_num_heads": 2, "decoder_head_dim": 8, "decoder_num_heads": 2,
}  # fmt: skip
NARROW: dict[str, dict[str, Any]] = {
    **{arch: {"max_num_classes": 10, "emsize": 32, "nhead": 2} for arch in ("v2", "v2_5", "v2_6")},
    "v3": {"max_num_classes": 10, "icl_num_kv_heads_test": 1, **EMBEDDING},
    "v3_5": {"max_num_classes": 10, "num_buckets": 50, **EMBEDDING},
}
"""Networks with all of their layers, which are thin. Kernels are as many as at full size."""
BUDGETS = {"demo": 220, "v2": 330, "v3_5": 700}
"""Kernels of one row, in any format, with eight members."""


def test_narrow_networks_have_the_layers_of_full_ones() -> None:
    assert all("nlayers" not in config and "num_blocks" not in str(config) for config in NARROW.values())
    assert set(NARROW) == set(ARCHITECTURES)


@pytest.mark.parametrize("arch", ["v2", "v3_5"])
def test_one_row_stays_within_its_budget(arch: str) -> None:
    run = run_kernels(KernelOptions((arch,), (1,), PRECISIONS, context_rows=60), NARROW)
    found = {result["precision"]: result["kernels"] for result in run["results"]}
    assert set(found) == set(PRECISIONS)
    assert all(50 < num <= BUDGETS[arch] for num in found.values()), found


def test_a_few_columns_more_in_one_context_hardly_count(tmp_path: Path) -> None:
    """v3 has them."""
    checkpoint = write_checkpoint("v3", tmp_path, 1, NARROW["v3"])
    near_rows, far_rows = counted_rows(30)
    near, far, counted = (
        count_launches(fit(synthetic_model("v3", checkpoint, rows, 30, 8, 1)), "bfloat16", [1])[1]
        for rows in (near_rows, far_rows, 960)
    )
    extended = extend(near, near_rows, far, far_rows, 960)
    for name in ("read", "flops", "held"):
        found, expected = (sum(getattr(launch, name) for launch in each) for each in (extended, counted))
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("arch", ["v2", "v3_5"])
def test_a_large_context_follows_from_two_small_ones(arch: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(arch, tmp_path, 1, NARROW[arch])
    near_rows, far_rows = counted_rows(30)
    near, far, counted = (
        count_launches(fit(synthetic_model(arch, checkpoint, rows, 30, 2, 1)), "bfloat16", [1])[1]
        for rows in (near_rows, far_rows, 640)
    )
    assert sum(launch.held for launch in near) < sum(launch.held for launch in counted)
    assert extend(near, near_rows, far, far_rows, 640) == counted


def test_contexts_of_different_kernels_tell_nothing_of_a_third(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("v2", tmp_path, 1, NARROW["v2"])
    one = count_launches(fit(synthetic_model("v2", checkpoint, 20, 3, 1)), "float32", [1])[1]
    with pytest.raises(ValueError, match="at most 40"):
        extend(one, 20, one[1:], 40, 100)


@pytest.mark.parametrize("arch", ["v2", "v3", "v3_5"])
def test_a_regressor_has_kernels_of_its_own(arch: str) -> None:
    options = KernelOptions((arch,), context_rows=40, features=4, members=2)
    classes, number = (
        run_kernels(dataclasses.replace(options, task=str(task)), NARROW)["results"][0]["operators"] for task in Task
    )
    assert classes != number


def test_the_command_writes_what_it_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "--arch demo --rows 1 2 --precision float32 bfloat16 float16 --json run.json --plot run.png"
    assert kernels.main(line.split()) == 0
    run = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert run["kind"] == "offline-kernels"
    assert [(each["arch"], each["rows"], each["precision"]) for each in run["results"]] == [
        ("demo", rows, precision) for precision in PRECISIONS for rows in (1, 2)
    ]
    for result in run["results"]:
        assert 50 < result["kernels"] <= BUDGETS["demo"]
        assert result["kernels"] == sum(result["operators"].values()) == sum(result["kinds"].values())
        assert result["bytes"] > result["held_bytes"] > 0
        for times in result["times_ms"].values():
            assert times["estimate"] >= max(times["launches"], times["bytes"] / 2) > 0
    assert set(run["gpus"]) == set(GPUS)
    wide, narrow = run["results"][0], run["results"][2]
    assert wide["flops"] == narrow["flops"]
    assert wide["held_bytes"] > 1.3 * narrow["held_bytes"]
    assert Path("run.png").read_bytes().startswith(b"\x89PNG")
    assert "H200" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["--arch v9", "--rows 0", "--precision auto", "--task ranking"])
def test_a_wrong_option_is_refused(line: str) -> None:
    with pytest.raises(SystemExit) as stop:
        kernels.main(line.split())
    assert stop.value.code == 2


def test_a_format_is_estimated_on_the_gpus_that_serve_in_it() -> None:
    assert set(gpus_of("float32")) == set(GPUS)
    assert set(gpus_of("float16")) == {"T4"}
    assert set(gpus_of("bfloat16")) == set(GPUS) - {"T4"}


def test_an_estimate_is_the_longest_part_of_each_kernel() -> None:
    gpu = dataclasses.replace(GPUS["H200"], gb_per_s=1, single_tflops=1, product_us=4.0, other_us=2.0, cache_mb=1)
    tiny, large = Launch("add", 8, 8), Launch("add", 10**7, 0)
    product = Launch("mm", 5_000, 0, flops=6 * 10**6, held=5_000)
    assert times_ms([tiny], gpu, "float32") == {"bytes": 0, "arithmetic": 0, "launches": 0.002, "estimate": 0.002}
    assert times_ms([large], gpu, "float32")["estimate"] == 10
    assert times_ms([product], gpu, "float32") == {
        "bytes": 0.005, "arithmetic": 0.006, "launches": 0.004, "estimate": 0.006,
    }  # fmt: skip
