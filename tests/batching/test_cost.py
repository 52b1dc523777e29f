"""Predicted seconds: seeded, learned, filled in, and hard to mislead."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from queue_harness import A, B, cost_model, cost_s

from serve.batching import CostModel


def test_a_batch_costs_what_its_row_bucket_costs() -> None:
    cost = cost_model(64, A).of(A)
    for num_rows, bucket in ((1, 1), (3, 4), (32, 32), (33, 64), (64, 64)):
        assert cost.predict(num_rows) == pytest.approx(cost_s(bucket))
        assert cost.padded(num_rows) == bucket
    assert cost.predict_all(150, 64) == pytest.approx(2 * cost_s(64) + cost_s(32))
    assert cost.predict_all(128, 64) == pytest.approx(2 * cost_s(64))


def test_the_engines_buckets_are_those_of_the_seed() -> None:
    model = CostModel(64)
    cost = model.seed(A, {64: 1.0, 48: 0.5}, now=7.0)
    assert cost.predict(20) == 0.5
    assert cost.measured_at(64) == 7.0
    assert model.of(A) is cost


def test_nothing_is_known_of_a_context_that_was_not_measured() -> None:
    model = cost_model(64, A)
    assert model.of(B).predict(64) == 0.0
    assert model.of(B).rows_within(0.001) == 64


def test_buckets_that_were_not_measured_lie_on_the_line_through_the_others() -> None:
    cost = CostModel(64).of(A)
    cost.learn(8, cost_s(8), 0.0)
    assert cost.predict(1) == cost.predict(64) == pytest.approx(cost_s(8)), "one point: flat"
    cost.learn(32, cost_s(32), 0.0)
    for bucket in (1, 2, 4, 8, 16, 32, 64):
        assert cost.predict(bucket) == pytest.approx(cost_s(bucket))


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.floats(1e-4, 10), min_size=1))
def test_no_prediction_is_negative_or_falls_with_the_rows_where_it_is_filled_in(seen: dict[int, float]) -> None:
    cost = CostModel(64).of(A)
    for num_rows, seconds in seen.items():
        cost.learn(num_rows, seconds, 0.0)
    filled_in = [cost.predict(bucket) for bucket in (1, 2, 4, 8, 16, 32, 64) if bucket not in seen]
    assert all(predicted >= 0 for predicted in filled_in)
    assert filled_in == sorted(filled_in)


@given(old=st.floats(0.001, 10), new=st.floats(0.001, 10))
def test_an_estimate_follows_a_lasting_change(old: float, new: float) -> None:
    cost = CostModel(1).seed(A, {1: old}, 0.0)
    for _ in range(100):
        cost.learn(1, new, 0.0)
        assert min(old, new) * 0.999 <= cost.predict(1) <= max(old, new) * 1.001
    assert cost.predict(1) == pytest.approx(new, rel=0.1)


def test_one_stall_does_not_spoil_an_estimate() -> None:
    cost = CostModel(1).seed(A, {1: 0.01}, 0.0)
    cost.learn(1, 30.0, 0.0)
    assert cost.predict(1) <= 0.0161


def test_rows_within_a_bound() -> None:
    cost = cost_model(64, A).of(A)
    assert cost.rows_within(cost_s(16)) == 16
    assert cost.rows_within(cost_s(16) - 1e-9) == 8
    assert cost.rows_within(100.0) == 64
    assert cost.rows_within(0.0) == 1, "one row always fits"


def test_running_out_of_memory_halves_the_budget_down_to_one_row() -> None:
    cost = cost_model(64, A).of(A)
    budgets = []
    for num_rows in (64, 64, 7, 3, 1):
        cost.lower_budget(num_rows, 0.0)
        budgets.append(cost.row_budget)
    assert budgets == [32, 32, 4, 2, 1]
    assert cost.rows_within(100.0) == cost.padded(20) == 1


def test_a_lowered_budget_is_tried_higher_when_it_was_filled_for_a_while() -> None:
    cost = cost_model(64, A).of(A)
    cost.lower_budget(64, 0.0)
    cost.learn(32, cost_s(32), 59.9)
    cost.learn(16, cost_s(16), 60.0)
    assert cost.row_budget == 32, "too soon, and then not full"
    cost.learn(32, cost_s(32), 60.0)
    assert cost.row_budget == 64
    cost.lower_budget(64, 61.0)  # it did not fit
    cost.learn(32, cost_s(32), 61.0 + 119.9)
    assert cost.row_budget == 32, "twice as long"
    cost.learn(32, cost_s(32), 61.0 + 120.0)
    assert cost.row_budget == 64


@given(
    st.sampled_from([(1,), (1, 3, 12, 48)]),
    st.lists(st.tuples(st.integers(1, 48), st.floats(0, 1_000), st.booleans()), max_size=60),
)
def test_a_budget_stays_between_one_row_and_the_largest_bucket(
    buckets: tuple[int, ...], steps: list[tuple[int, float, bool]]
) -> None:
    cost = CostModel(48).seed(A, dict.fromkeys(buckets, 0.1), 0.0)
    now = 0.0
    for num_rows, waited_s, fits in steps:
        now += waited_s
        num_rows = min(num_rows, cost.row_budget)
        if fits:
            cost.learn(num_rows, 0.1, now)
        else:
            cost.lower_budget(num_rows, now)
        assert 1 <= cost.row_budget <= buckets[-1]


@given(num_rows=st.integers(1, 64), seconds=st.lists(st.floats(1e-3, 1.0), min_size=7, max_size=7))
def test_cutting_at_a_bucket_is_done_only_where_all_is_sooner_done(num_rows: int, seconds: list[float]) -> None:
    cost = CostModel(64).seed(A, dict(zip((1, 2, 4, 8, 16, 32, 64), seconds, strict=True)), 0.0)
    first = cost.efficient_batch_rows(num_rows)
    if first == num_rows:
        return
    assert first in (1, 2, 4, 8, 16, 32)
    assert cost.predict(first) + cost.predict(num_rows - first) < cost.predict(num_rows)


def test_where_nothing_was_measured_nothing_is_cut_off() -> None:
    assert [CostModel(64).of(A).efficient_batch_rows(num_rows) for num_rows in (1, 3, 33, 64)] == [1, 3, 33, 64]


def test_flat_costs_make_no_cut() -> None:
    cost = CostModel(64).seed(A, dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 0.01), 0.0)
    assert cost.efficient_batch_rows(33) == 33
