"""The offline comparison, on a small cut of the demo model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.offline import engine as offline
from benchmarks.offline.engine import Case, EngineOptions, cases, compare_predicts, measure_case, mix_rows, table

OPTIONS = EngineOptions(rows=(1, 5), pairs=3, uncached_pairs=2)


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
    return Case("small", dataclasses.replace(case.definition, context=cut, options=options))


def test_the_default_case_is_the_demo_model_without_prior_correction() -> None:
    (case,) = cases(OPTIONS)
    assert case.name == "fraud"
    assert case.definition.context.class_priors is None
    assert case.definition.context.num_rows > 500


def test_a_case_is_measured_and_the_three_ways_agree() -> None:
    (demo,) = cases(OPTIONS)
    facts, results = measure_case(small(demo), OPTIONS)
    assert (facts["context_rows"], facts["members"], facts["outputs"]) == (60, 2, 2)
    assert facts["checkpoint"] == demo.definition.checkpoint_name
    assert [result["rows"] for result in results] == [1, 5]
    for result in results:
        assert {"case", "ours_ms", "library_ms", "uncached_ms", "speedup", "speedup_uncached", "pairs"} <= set(result)
        assert result["max_abs_diff"] < 1e-5
        assert result["max_abs_diff_uncached"] < 1e-5
        assert [len(result["pairs_ms"][way]) for way in ("ours", "library", "uncached")] == [3, 3, 2]
        assert result["ours_ms_per_row"] == pytest.approx(result["ours_ms"] / result["rows"], abs=1e-3)
    json.dumps(results, allow_nan=False)


def test_a_difference_is_reported_with_the_way_it_is_in() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    result = compare_predicts(lambda x: x, lambda x: x + 0.25, lambda x: x - 0.5, rows, OPTIONS)
    assert (result["max_abs_diff"], result["max_abs_diff_uncached"]) == (0.25, 0.5)


def test_query_rows_mix_the_columns_of_the_context() -> None:
    context = np.stack([np.arange(500.0), 1000 + np.arange(500.0)], axis=1)
    rows = mix_rows(context, 200, seed=4)
    assert rows.shape == (200, 2)
    assert set(rows[:, 0]) <= set(context[:, 0])
    assert set(rows[:, 1]) <= set(context[:, 1])
    assert np.any(rows[:, 1] - rows[:, 0] != 1000)  # not merely rows of the context
    np.testing.assert_array_equal(rows, mix_rows(context, 200, seed=4))


def test_the_table_has_a_line_per_cell() -> None:
    names = ("ours_ms", "library_ms", "uncached_ms", "speedup", "speedup_uncached", "max_abs_diff")
    run = {"results": [{"case": "fraud", "rows": rows, **dict.fromkeys(names, 1.5)} for rows in (1, 8)]}
    assert len(table(run).splitlines()) == 3


def test_help_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        offline.main(["--help"])
    assert stop.value.code == 0
    assert "--uncached-pairs" in capsys.readouterr().out
