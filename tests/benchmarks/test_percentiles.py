"""Percentiles are measured values, and say when there are too few to carry them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.percentiles import PERCENTILES, samples_needed, summarise


@pytest.mark.parametrize(("percent", "needed"), [(50, 7), (90, 44), (99, 459)])
def test_samples_needed_is_the_least_that_leaves_one_per_cent_of_doubt(percent: int, needed: int) -> None:
    assert samples_needed(percent) == needed
    assert (percent / 100) ** needed <= 0.01 < (percent / 100) ** (needed - 1)


@pytest.mark.parametrize(("n", "reliable"), [(458, False), (459, True), (460, True), (0, False), (1, False)])
def test_p99_is_flagged_below_459_samples(n: int, reliable: bool) -> None:
    summary = summarise([1.0] * n)
    assert summary["n"] == n
    assert summary["p99_reliable"] is reliable


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=300))
def test_a_percentile_is_a_measured_value_with_enough_at_or_below_it(values: list[float]) -> None:
    summary = summarise(values)
    for percent in PERCENTILES:
        found = summary[f"p{percent}_ms"]
        assert found in {round(value, 3) for value in values}
        at_or_below = sum(round(value, 3) <= found for value in values)
        assert at_or_below >= percent / 100 * len(values) - 1e-9
    assert summary["max_ms"] == round(max(values), 3)


def test_nothing_measured_is_null() -> None:
    summary = summarise([])
    assert [summary[key] for key in ("mean_ms", "p50_ms", "p99_ms", "max_ms")] == [None] * 4
