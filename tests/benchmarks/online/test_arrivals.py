"""Arrivals are a seeded Poisson process, drawn before the run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.online.arrivals import BURST_FACTOR, bursty_arrivals, draw_records, poisson_arrivals

RATES = st.floats(0.5, 2000)
DURATIONS = st.floats(0.1, 20)
SEEDS = st.integers(0, 2**32 - 1)


@given(RATES, DURATIONS, SEEDS)
def test_due_times_are_sorted_and_within_the_duration(rate: float, duration: float, seed: int) -> None:
    due = poisson_arrivals(rate, duration, seed)
    assert np.all(np.diff(due) > 0)
    assert np.all((due >= 0) & (due < duration))


@given(RATES, DURATIONS, SEEDS)
def test_as_many_arrive_as_the_rate_says(rate: float, duration: float, seed: int) -> None:
    expected = rate * duration
    assert abs(len(poisson_arrivals(rate, duration, seed)) - expected) < 8 * math.sqrt(expected) + 20


@given(RATES, SEEDS)
def test_a_seed_gives_the_same_arrivals_and_a_longer_run_continues_them(rate: float, seed: int) -> None:
    short, again = poisson_arrivals(rate, 2.0, seed), poisson_arrivals(rate, 2.0, seed)
    np.testing.assert_array_equal(short, again)
    np.testing.assert_allclose(poisson_arrivals(rate, 3.0, seed)[: len(short)], short, rtol=1e-9)


def test_gaps_are_exponential_and_counts_are_poisson() -> None:
    due = poisson_arrivals(50, 400, seed=7)
    assert stats.kstest(np.diff(due), "expon", args=(0, 1 / 50)).pvalue > 0.01
    counts = np.histogram(due, bins=400, range=(0, 400))[0]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)  # evenly spaced load would have 0


def test_rates_and_seeds_differ() -> None:
    assert poisson_arrivals(20, 10, 1)[0] != poisson_arrivals(20, 10, 2)[0]
    scaled = poisson_arrivals(40, 10, 1)[:100] * 2
    assert not np.allclose(scaled, poisson_arrivals(20, 10, 1)[:100])


@pytest.mark.parametrize(("rate", "duration"), [(0, 1), (-1, 1), (1, 0), (math.nan, 1)])
def test_a_senseless_rate_or_duration_is_refused(rate: float, duration: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        poisson_arrivals(rate, duration, 1)


def test_every_record_is_posted_about_equally_often_in_no_order() -> None:
    order = draw_records(8000, 8, seed=3)
    counts = np.bincount(order, minlength=8)
    assert counts.min() > 850
    assert order != sorted(order)
    assert order == draw_records(8000, 8, seed=3)


@given(RATES, DURATIONS, SEEDS)
def test_bursty_due_times_are_sorted_seeded_and_within_the_duration(rate: float, duration: float, seed: int) -> None:
    due = bursty_arrivals(rate, duration, seed)
    assert np.all(np.diff(due) >= 0)
    assert np.all((due >= 0) & (due < duration))
    np.testing.assert_array_equal(due, bursty_arrivals(rate, duration, seed))


def test_bursts_keep_the_mean_rate_and_are_bursts() -> None:
    due = bursty_arrivals(200, 2000, seed=5)
    assert len(due) == pytest.approx(200 * 2000, rel=0.05)
    counts = np.histogram(due, bins=20_000, range=(0, 2000))[0]
    assert counts.var() / counts.mean() > 5  # Poisson has 1
    assert np.percentile(counts, 99.5) > 0.8 * BURST_FACTOR * 20


@pytest.mark.parametrize(("rate", "duration"), [(0, 1), (1, -1), (math.nan, 1)])
def test_a_senseless_burst_is_refused(rate: float, duration: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        bursty_arrivals(rate, duration, 1)
