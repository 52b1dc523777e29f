"""The offline comparison: the grid, and whole runs of tiny networks and of a small cut of the demo model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import write_json
from benchmarks.offline import engine as offline
from benchmarks.offline.architectures import ARCHITECTURES
from benchmarks.offline.engine import BACKENDS, PRECISIONS, parse, table
from benchmarks.offline.grid import EngineOptions, cases, demo_case, measure_case, run_engine
from benchmarks.offline.sides import Case
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings

TINY: dict[str, dict[str, Any]] = {
    **{arch: {"max_num_classes": 10, "emsize": 32, "nlayers": 2, "nhead": 2} for arch in ("v2", "v2_5", "v2_6")},
    "v3": {
        "max_num_classes": 10, "embed_dim": 16, "dist_embed_num_blocks": 1, "dist_embed_num_heads": 2,
        "dist_embed_num_inducing_points": 4, "feat_agg_num_blocks": 1, "feat_agg_num_heads": 2,
        "feat_agg_num_cls_tokens": 2, "nlayers": 2, "icl_num_heads": 2, "decoder_head_dim": 8, "decoder_num_heads": 2,
    },
    "v3_5": {
        "max_num_classes": 10, "num_buckets": 50, "embed_dim": 16, "dist_embed_num_blocks": 1,
        "dist_embed_num_heads": 2, "dist_embed_num_inducing_points": 4, "feat_agg_num_blocks": 1,
        "feat_agg_num_heads": 2, "feat_agg_num_cls_tokens": 2, "nlayers": 2, "icl_num_heads": 2,
        "decoder_head_dim": 8, "decoder_num_heads": 2,
    },
}  # fmt: skip
SMALL = EngineOptions(
    arch=("v2", "v3_5"), context_rows=(40,), features=(4,), members=(2,), rows=(1, 5), pairs=3, warmups=1
)
IN_EVERY_CELL = {
    "case", "arch", "context_rows", "features", "members", "rows", "precision", "device", "threads", "backend",
    "compiled_ms", "tabpfn_ms", "compiled_ms_per_row", "tabpfn_ms_per_row", "speedup", "max_abs_diff",
    "tabpfn_abs_diff", "peak_rss_bytes", "peak_device_bytes", "pairs", "pairs_ms",
}  # fmt: skip


def test_the_default_is_the_demo_model_alone() -> None:
    options, to_json, to_plot = parse([])
    assert options == EngineOptions()
    assert (options.arch, to_json, to_plot) == (("demo",), None, None)


def test_the_command_line_of_one_cell(tmp_path: Path) -> None:
    line = (
        "--arch v2 --context-rows 1000 --features 30 --members 8 --rows 1 --device cpu --precision float32 --threads 2"
    )
    options, to_json, _ = parse([*line.split(), "--json", str(tmp_path / "run.json")])
    assert options == EngineOptions(("v2",), (1_000,), (30,), (8,), (1,), ("cpu",), ("float32",), threads=2)
    assert to_json == tmp_path / "run.json"


@pytest.mark.parametrize(
    "line", ["--arch v9", "--rows", "--rows one", "--rows 0", "--precision float31", "--backend ours"]
)
def test_a_wrong_flag_is_refused(line: str) -> None:
    with pytest.raises(SystemExit):
        parse(line.split())


def test_a_precision_that_the_engine_does_not_have_is_refused_before_anything_is_built() -> None:
    options = dataclasses.replace(SMALL, precision=("float32", "float31"))
    with pytest.raises(ValueError, match="inference_precision"):
        run_engine(options)


def test_the_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    options = dataclasses.replace(
        SMALL, context_rows=(20, 30), features=(2, 3), members=(1, 4), precision=("float32", "auto")
    )
    found = [
        (case.arch, case.definition.context.num_rows, len(case.definition.context.columns), num_members)
        for case in cases(options, tmp_path, TINY)
        for num_members in [case.definition.options.num_members]
    ]
    expected = [(a, c, f, m) for a in ("v2", "v3_5") for c in (20, 30) for f in (2, 3) for m in (1, 4)]
    assert found == expected
    assert [settings.inference_precision for settings in options.settings("cpu")] == ["float32", "auto"]
    assert list(tmp_path.iterdir()) == []  # a checkpoint of 875 MB is not kept longer than its cases


def test_a_whole_run_of_tiny_networks(tmp_path: Path) -> None:
    seen: list[int] = []
    every = dataclasses.replace(SMALL, arch=tuple(ARCHITECTURES))
    run = run_engine(every, TINY, on_result=lambda so_far: seen.append(len(so_far["results"])))
    assert seen == list(range(1, 11))
    assert [(result["arch"], result["rows"]) for result in run["results"]] == [
        (arch, rows) for arch in ("v2", "v2_5", "v2_6", "v3", "v3_5") for rows in (1, 5)
    ]
    for result in run["results"]:
        check_cell(result)
        assert result["backend"] == "compiled"
        facts = run["cases"][result["case"]]
        assert {axis: facts[axis] for axis in ("arch", "context_rows", "features", "members")} == {
            axis: result[axis] for axis in ("arch", "context_rows", "features", "members")
        }
        assert len(facts["widths"]) == facts["members"] == 2
        assert facts["parameters"] * 4 <= facts["tabpfn_weights_bytes"]
        assert 0 < facts["tabpfn_float32_kv_cache_bytes"] < result["peak_rss_bytes"]
    assert {"machine", "versions", "commit", "config", "torch_threads", "cases", "results"} <= set(run)
    write_json(run, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["config"]["arch"] == list(ARCHITECTURES)
    assert len(table(run).splitlines()) == 11


def check_cell(result: dict[str, Any]) -> None:
    assert set(result) >= IN_EVERY_CELL
    assert result["max_abs_diff"] <= 1e-5
    assert 0 <= result["tabpfn_abs_diff"] < 0.2
    assert [len(result["pairs_ms"][way]) for way in ("compiled", "tabpfn")] == [3, 3]
    assert result["compiled_ms_per_row"] == pytest.approx(result["compiled_ms"] / result["rows"], abs=1e-3)
    assert not [name for name in result if "bytes" in name and not name.startswith("peak_")]
    assert result["threads"] == 1


def small(case: Case, num_rows: int = 60) -> Case:
    """The same model with few context rows and members."""
    context = case.definition.context
    step = context.num_rows // num_rows
    cut = dataclasses.replace(
        context,
        cells={name: list(cells)[::step][:num_rows] for name, cells in context.cells.items()},
        target=list(context.target)[::step][:num_rows],
    )
    options = dataclasses.replace(case.definition.options, num_members=2)
    return dataclasses.replace(
        case, name="small", definition=dataclasses.replace(case.definition, context=cut, options=options)
    )


def test_the_demo_model_is_measured_without_a_cache_too() -> None:
    options = EngineOptions(rows=(1, 5), pairs=3, uncached_pairs=2)
    demo = demo_case(options)
    assert demo.definition.context.class_priors is None
    assert demo.definition.context.num_rows > 500
    facts: dict[str, Any] = {}
    engines = [(settings, TabPFNEngine(settings, 5)) for settings in options.settings("cpu")]
    results = list(measure_case(small(demo), "cpu", engines, options, facts))
    assert (facts["small"]["context_rows"], facts["small"]["members"], facts["small"]["outputs"]) == (60, 2, 2)
    assert facts["small"]["checkpoint"] == demo.definition.checkpoint_name
    assert [result["rows"] for result in results] == [1, 5]
    for result in results:
        check_cell(result)
        assert result["max_abs_diff_uncached"] <= 1e-5
        assert [len(times) for times in result["uncached_pairs_ms"].values()] == [2, 2]
        assert {"uncached_ms", "uncached_ms_per_row", "speedup_uncached"} <= set(result)
    json.dumps(results, allow_nan=False)


def test_the_table_leaves_out_what_no_cell_has() -> None:
    names = ("compiled_ms", "tabpfn_ms", "speedup", "max_abs_diff")
    results = [{"case": "fraud", "rows": rows, **dict.fromkeys(names, 1.5)} for rows in (1, 8)]
    lines = table({"results": results}).splitlines()
    assert len(lines) == 3
    assert "uncached_ms" not in lines[0]
    assert "uncached_ms" in table({"results": [*results, {**results[0], "uncached_ms": 2.0}]})


def test_help_names_every_choice_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        offline.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in (*PRECISIONS, *BACKENDS, "(default: 1 8 32 100)", "(default: fraud)"))
    for name in BACKENDS:
        EngineSettings(backend=name)
    for name in PRECISIONS:
        EngineSettings(inference_precision=name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "frodd"], "has no model 'frodd'; --model can be: fraud"),
        (["--repository", "/nowhere"], "--repository /nowhere: there is no such folder"),
        (["--device", "cuda:0"], "sees no GPU"),
    ],
)
def test_a_wrong_name_ends_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert offline.main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m benchmarks.offline.engine: ")
    assert said in last


def test_progress_counts_the_cells(capsys: pytest.CaptureFixture[str]) -> None:
    options = dataclasses.replace(SMALL, arch=("v2",), rows=(1, 5), pairs=1, warmups=0)
    assert options.num_cells == 2
    run_engine(options, TINY)
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines() if "rows" in line]
    assert [line[:12] for line in lines] == ["1 of 2 cells", "2 of 2 cells"]
    assert "left" in lines[0]


def test_help_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        offline.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(flag in said for flag in ("--uncached-pairs", "--context-rows", "--precision", *ARCHITECTURES))


@pytest.mark.gpu
def test_a_whole_run_on_a_gpu() -> None:
    run = run_engine(dataclasses.replace(SMALL, device=("cuda:0",)), TINY)
    assert all(result["peak_device_bytes"] > 0 for result in run["results"])
    assert all(result["max_abs_diff"] <= 1e-4 for result in run["results"])
