"""One cell: the number of rounds, differences from the exact answer, and the float32 cache that is lent."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.offline.architectures import synthetic_model, write_checkpoint
from benchmarks.offline.cells import Rounds, compare_cached, compare_uncached
from benchmarks.offline.sides import Case, EngineSide, TabPFNSide, case_facts, kv_cache_bytes, mix_rows
from serve.engine import tabpfn_estimators
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings

ROUNDS = Rounds(pairs=3, warmups=0)


@pytest.mark.parametrize(
    ("round_s", "expected"),
    [(0.01, (2, 7)), (10, (2, 7)), (13.3, (2, 7)), (15, (1, 7)), (20, (1, 5)), (30, (1, 3)), (500, (1, 3))],
)
def test_a_slow_cell_runs_fewer_pairs_but_at_least_three(round_s: float, expected: tuple[int, int]) -> None:
    assert Rounds(pairs=7, warmups=2, cell_seconds=120).affordable(round_s) == expected


def test_no_more_pairs_are_run_than_were_asked_for() -> None:
    assert Rounds(pairs=1, warmups=0, cell_seconds=1).affordable(100) == (0, 1)


def test_both_answers_are_compared_with_the_exact_one() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    result = compare_cached(lambda x: x + 0.25, lambda x: x - 0.5, rows, rows, ROUNDS)
    assert (result["rows"], result["pairs"]) == (3, 3)
    assert (result["max_abs_diff"], result["tabpfn_abs_diff"]) == (0.25, 0.5)


def test_the_uncached_answer_is_compared_with_float32_too() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    result = compare_uncached(lambda x: x, lambda x: x + 7, lambda x: x - 0.5, rows, 2)
    assert (result["max_abs_diff_uncached"], result["uncached_pairs"]) == (0.5, 2)


def test_query_rows_mix_the_columns_of_the_context() -> None:
    context = np.stack([np.arange(500.0), 1000 + np.arange(500.0)], axis=1)
    rows = mix_rows(context, 200, seed=4)
    assert rows.shape == (200, 2)
    assert set(rows[:, 0]) <= set(context[:, 0])
    assert set(rows[:, 1]) <= set(context[:, 1])
    assert np.any(rows[:, 1] - rows[:, 0] != 1000)  # not merely rows of the context
    np.testing.assert_array_equal(rows, mix_rows(context, 200, seed=4))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    tiny = {"max_num_classes": 10, "emsize": 32, "nlayers": 1, "nhead": 2}
    checkpoint = write_checkpoint("v2", tmp_path_factory.mktemp("random"), config=tiny)
    return Case("tiny", "v2", synthetic_model("tiny", checkpoint, 30, 4, 2))


def test_one_float32_cache_serves_the_exact_answer_and_every_engine(case: Case) -> None:
    side = TabPFNSide(case, "cpu")
    queries = {4: mix_rows(side.context_rows, 4, seed=0)}
    exact = side.exact_answers(queries)[4]
    settings = EngineSettings()
    engine = TabPFNEngine(settings, 4)
    build = tabpfn_estimators.build_estimator
    for is_last in (False, True):
        side.was_borrowed = False
        with side.lent(is_last=is_last):
            tested = EngineSide(engine, settings, case.definition)
        assert side.was_borrowed
        assert tabpfn_estimators.build_estimator is build
        np.testing.assert_allclose(tested.predict(queries[4]), exact, rtol=0, atol=1e-5)
    assert kv_cache_bytes(side.default) > 0


def test_a_borrower_that_drops_its_caches_drops_only_its_own(case: Case) -> None:
    side = TabPFNSide(case, "cpu")
    with side.lent(is_last=False):
        borrowed = tabpfn_estimators.build_estimator(case.definition, None, "fit_with_cache", "cpu", "float32")
    borrowed.executor_.kv_caches = []
    with side.lent(is_last=True):
        again = tabpfn_estimators.build_estimator(case.definition, None, "fit_with_cache", "cpu", "float32")
    assert kv_cache_bytes(again) == side.exact_kv_cache_bytes > 0


def test_bytes_are_stated_of_tabpfn_alone_and_in_both_precisions(case: Case) -> None:
    side = TabPFNSide(case, "cpu")
    facts = case_facts(case, side)
    assert 0 < facts["tabpfn_kv_cache_bytes"] <= facts["tabpfn_float32_kv_cache_bytes"]
    assert (facts["tabpfn_kv_cache_bytes"] < facts["tabpfn_float32_kv_cache_bytes"]) == side.is_reduced
    assert facts["tabpfn_weights_bytes"] >= 4 * facts["parameters"]
    assert not [name for name in facts if "bytes" in name and not name.startswith("tabpfn_")]


def test_another_precision_is_not_lent(case: Case) -> None:
    side = TabPFNSide(case, "cpu")
    with side.lent(is_last=False):
        EngineSide(TabPFNEngine(EngineSettings(), 1), EngineSettings(), case.definition)
        side.was_borrowed = False
        built, _ = side._fit("fit_preprocessors", "float32")
    assert not side.was_borrowed
    assert not hasattr(built.executor_, "kv_caches")
