"""The early-stopping statistic: the number of late answers that a claim allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.online.evidence import allowed_late, confidence, requests_needed
from benchmarks.percentiles import samples_needed


def test_the_well_known_numbers() -> None:
    assert [requests_needed(late) for late in (0, 1, 2)] == [459, 662, 838]
    assert requests_needed(0) == samples_needed(99)
    assert allowed_late(458) == allowed_late(459) == allowed_late(661) == 0
    assert allowed_late(662) == 1
    assert allowed_late(270_336) == 2583  # MLPerf's classic number of queries: nearly the whole percent


@given(st.integers(0, 40))
def test_needed_requests_bear_their_late_ones_and_one_fewer_do_not(late: int) -> None:
    needed = requests_needed(late)
    assert confidence(late, needed) >= 0.99
    assert confidence(late, needed - 1) < 0.99
    assert allowed_late(needed) == late


@given(st.integers(459, 20_000), st.sampled_from([90, 99]))
def test_allowed_is_the_most_that_the_binomial_bears(num_requests: int, percent: int) -> None:
    allowed = allowed_late(num_requests, percent)
    share = 1 - percent / 100
    assert binom.cdf(allowed, num_requests, share) <= 0.01 < binom.cdf(allowed + 1, num_requests, share)
    assert allowed < share * num_requests


def test_few_requests_show_little() -> None:
    assert confidence(0, 0) == confidence(3, 3) == confidence(5, 3) == 0.0
    assert 0.6 < confidence(0, 100) < 0.65
    assert confidence(1, 100) < confidence(0, 100)
