"""Estimates that came out too high, in a warm-up or later, recover by themselves; and so does admission."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given
from queue_harness import A, Queue, Request, queue_of

from serve.batching import AdmissionController, AdmissionLimits, BatchWatchdog, CostModel
from serve.batching.cost import ContextCost
from serve.core import row_buckets
from serve.core.errors import DeadlineTooShort, Overloaded

MAX_ROWS = 64
BUCKETS = row_buckets(MAX_ROWS)
MOST = 50.0
"""No seed is wrong by more."""

BUCKET = st.sampled_from(BUCKETS)
ERRORS = st.lists(st.floats(1.0, MOST), min_size=len(BUCKETS), max_size=len(BUCKETS))


class Costs:
    """What batches really take. The fixed part is that of a GPU, or nothing as nearly on a CPU."""

    def __init__(self, fixed_s: float, per_row_s: float) -> None:
        self.fixed_s, self.per_row_s = fixed_s, per_row_s

    def __call__(self, rows: int) -> float:
        return self.fixed_s + self.per_row_s * min(bucket for bucket in BUCKETS if bucket >= rows)

    def all(self, num_rows: int) -> float:
        return math.fsum(self(min(MAX_ROWS, num_rows - start)) for start in range(0, num_rows, MAX_ROWS))

    def seeded(self, errors: list[float]) -> CostModel:
        model = CostModel(MAX_ROWS)
        model.seed(A, {rows: self(rows) * error for rows, error in zip(BUCKETS, errors, strict=True)}, 0.0)
        return model


TRUE = st.builds(Costs, st.sampled_from([0.0, 0.002, 0.1]), st.floats(1e-5, 0.01))


def predictions(cost: ContextCost) -> list[float]:
    return [cost.predict(rows) for rows in BUCKETS]


@given(TRUE, ERRORS)
def test_a_seed_is_no_higher_than_a_larger_batch_or_several_smaller_ones(true: Costs, errors: list[float]) -> None:
    cost = true.seeded(errors).of(A)
    seeds = predictions(cost)
    assert seeds == sorted(seeds)
    for rows, seed in zip(BUCKETS, seeds, strict=True):
        assert true(rows) * (1 - 1e-9) <= seed <= true(rows) * MOST
        for fewer in BUCKETS:
            assert seed <= math.ceil(rows / fewer) * cost.predict(fewer) * (1 + 1e-9)


@given(TRUE, ERRORS, BUCKET)
def test_one_batch_corrects_its_bucket_and_bounds_all_others(true: Costs, errors: list[float], ran: int) -> None:
    cost = true.seeded(errors).of(A)
    cost.learn(ran, true(ran), 1.0)
    assert cost.predict(ran) == pytest.approx(true(ran))
    for rows in BUCKETS:
        most = true(ran) * math.ceil(rows / ran)
        assert true(ran) / math.ceil(ran / rows) * (1 - 1e-9) <= cost.predict(rows) <= most * (1 + 1e-9)


@given(TRUE, st.floats(1.0, MOST), BUCKET)
def test_after_a_warm_up_that_was_slow_throughout_one_batch_corrects_all(true: Costs, error: float, ran: int) -> None:
    cost = true.seeded([error] * len(BUCKETS)).of(A)
    cost.learn(ran, true(ran), 1.0)
    assert predictions(cost) == pytest.approx([true(rows) for rows in BUCKETS])


@given(TRUE, ERRORS, st.lists(BUCKET, max_size=40))
def test_once_every_bucket_ran_nothing_is_left_of_the_warm_up(
    true: Costs, errors: list[float], order: list[int]
) -> None:
    cost = true.seeded(errors).of(A)
    for rows in (*order, *BUCKETS):
        cost.learn(rows, true(rows), 1.0)
    assert predictions(cost) == pytest.approx([true(rows) for rows in BUCKETS])


@given(TRUE, st.floats(1.5, MOST))
def test_after_a_slow_hour_small_batches_correct_the_large_ones_too(true: Costs, slower: float) -> None:
    cost = true.seeded([1.0] * len(BUCKETS)).of(A)
    for rows in BUCKETS * 30:
        cost.learn(rows, true(rows) * slower, 1.0)
    assert cost.predict(MAX_ROWS) == pytest.approx(true(MAX_ROWS) * slower, rel=0.05)
    for _ in range(96):
        cost.learn(1, true(1), 2.0)
    assert cost.predict(MAX_ROWS) == pytest.approx(true(MAX_ROWS), rel=0.05)
    cost.learn(MAX_ROWS, 1.2 * true(MAX_ROWS), 3.0)
    assert cost.predict(MAX_ROWS) == pytest.approx(1.2 * true(MAX_ROWS), rel=0.05), "its own batch is believed at once"


@given(TRUE, ERRORS, st.lists(st.tuples(BUCKET, st.floats(0.01, 100.0)), max_size=60), BUCKET, st.floats(1.0, 1e9))
def test_one_strange_batch_raises_no_prediction_by_much(
    true: Costs, errors: list[float], history: list[tuple[int, float]], strange: int, factor: float
) -> None:
    cost = true.seeded(errors).of(A)
    for rows, slower in history:
        cost.learn(rows, true(rows) * slower, 1.0)
    cost.learn(strange, true(strange), 2.0)
    before = predictions(cost)
    cost.learn(strange, factor * true(strange), 2.0)
    assert all(new <= 1.6 * old * (1 + 1e-9) for new, old in zip(predictions(cost), before, strict=True))


@given(TRUE, st.lists(BUCKET, max_size=80))
def test_what_is_right_stays_right(true: Costs, order: list[int]) -> None:
    cost = true.seeded([1.0] * len(BUCKETS)).of(A)
    for rows in order:
        cost.learn(rows, true(rows), 1.0)
        assert predictions(cost) == pytest.approx([true(each) for each in BUCKETS])


@given(TRUE, ERRORS, BUCKET, st.integers(1, 10 * MAX_ROWS), st.booleans(), st.floats(2.0, 10.0))
def test_a_request_that_fits_is_soon_admitted_whatever_the_warm_up_measured(
    true: Costs, errors: list[float], usual: int, num_rows: int, is_busy: bool, room: float
) -> None:
    """Small batches run, and one caller asks again and again. On an idle device it is admitted at once."""
    model = true.seeded(errors)
    cost, queue = model.of(A), queue_of(cost=model)
    door: AdmissionController[Request] = AdmissionController(queue, model, BatchWatchdog(20), AdmissionLimits(100))
    now, time_s = 0.0, room * (true.all(num_rows) + true(usual))
    latest = 10.0 * (time_s + 64 * true(usual)) + true(usual)
    while True:
        now += true(usual)
        cost.learn(usual, true(usual), now)
        queue.clear()
        if is_busy:
            queue.add(Request(A, 1, now, math.inf))
        if admits(door, Request(A, num_rows, now, now + time_s), now):
            break
        assert is_busy
        assert now <= latest
    for start in range(0, num_rows, MAX_ROWS):
        rows = min(MAX_ROWS, num_rows - start)
        cost.learn(rows, true(rows), now)
    assert admits(door, Request(A, num_rows, now, now + time_s), now), "from now on without a doubt"


def admits(door: AdmissionController[Request], request: Request, now: float) -> bool:
    try:
        door.check(request, now)
    except (Overloaded, DeadlineTooShort):
        return False
    return True


def test_a_large_batch_that_was_slow_in_the_warm_up_alone_refuses_nobody() -> None:
    """256 rows took 3.4 s beside other work. A refusal said that 4000 rows take about 52 s; as bulk they took 15 s."""
    true_s = {rows: 0.005 + 0.0036 * rows for rows in row_buckets(256)}
    model = CostModel(256)
    model.seed(A, {**true_s, 256: 3.4}, 0.0)
    queue: Queue = queue_of(cost=model)
    door: AdmissionController[Request] = AdmissionController(queue, model, BatchWatchdog(20), AdmissionLimits(100))
    door.check(Request(A, 4_000, 0.0, 30.0), 0.0)
