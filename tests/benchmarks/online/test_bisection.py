"""The search finds a threshold, tries nothing outside its limits, and ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.online.bisection import SearchSettings, find_max_rate, tries_left
from benchmarks.online.errors import UnusableInput


def system_that_keeps(threshold: float, tried: list[float]) -> Callable[[float], Awaitable[bool]]:
    async def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= threshold

    return passes


@given(st.floats(1, 5000), st.floats(0.1, 20_000), st.floats(1.05, 4), st.floats(0.02, 0.5))
def test_the_threshold_is_found_wherever_the_search_begins(
    threshold: float, start: float, step: float, resolution: float
) -> None:
    tried: list[float] = []
    settings = SearchSettings(step=step, resolution=resolution, low=1, high=5000)
    found = asyncio.run(find_max_rate(system_that_keeps(threshold, tried), start, settings))
    assert found <= threshold <= found * (1 + resolution) * (1 + 1e-9)
    assert found in tried
    assert all(1 <= rate <= 5000 for rate in tried)


@given(st.randoms(use_true_random=False), st.floats(1, 5000))
def test_a_system_of_moods_ends_the_search_all_the_same(random: object, start: float) -> None:
    tried: list[float] = []

    async def passes(rate: float) -> bool:
        tried.append(rate)
        return bool(random.random() < 0.5)  # type: ignore[attr-defined]

    found = asyncio.run(find_max_rate(passes, start, SearchSettings()))
    assert found == 0.0 or found in tried
    assert len(tried) < 40


@given(st.floats(1, 5000), st.floats(0.1, 20_000), st.floats(1.05, 4), st.floats(0.02, 0.5))
def test_the_tries_left_are_estimated_well_once_the_rate_is_bracketed(
    threshold: float, start: float, step: float, resolution: float
) -> None:
    tried: list[float] = []
    settings = SearchSettings(step=step, resolution=resolution, low=1, high=5000)
    estimates: list[int] = []
    passes = system_that_keeps(threshold, tried)

    async def count(rate: float) -> bool:
        passed = await passes(rate)
        best = max((rate for rate in tried if rate <= threshold), default=0.0)
        worst = min((rate for rate in tried if rate > threshold), default=math.inf)
        is_bracketed = best > 0 and worst < math.inf
        estimates.append(tries_left(best, worst, settings) if is_bracketed else -1)
        return passed

    asyncio.run(find_max_rate(count, start, settings))
    for number, estimate in enumerate(estimates, start=1):
        if estimate >= 0:
            assert abs(estimate - (len(tried) - number)) <= 1
    assert tries_left(0.0, math.inf, settings) > 0


async def test_the_edges() -> None:
    settings = SearchSettings(low=2, high=100)
    tried: list[float] = []
    assert await find_max_rate(system_that_keeps(1, tried), 50, settings) == 0.0
    assert tried[-1] == 2
    tried.clear()
    assert await find_max_rate(system_that_keeps(1e9, tried), 50, settings) == 100
    assert max(tried) == 100


@pytest.mark.parametrize("wrong", [{"step": 1.0}, {"resolution": 0.0}, {"low": 0.0}, {"low": 10.0, "high": 5.0}])
def test_senseless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UnusableInput, match="step above 1"):
        SearchSettings(**wrong)
