"""Pairs: warm-up uncounted, order swapped, ratios within a round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.offline.pairs import Pairs, measure_pairs


class Workshop:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = ""

    def work(self, name: str, seconds: float) -> None:
        self.done += name
        self.now += seconds


def test_rounds_alternate_after_a_warm_up_that_does_not_count() -> None:
    shop = Workshop()
    pairs = measure_pairs(
        lambda: shop.work("a", 0.002), lambda: shop.work("b", 0.006), 3, warmups=2, clock=lambda: shop.now
    )
    assert shop.done == "abab" + "ab" + "ba" + "ab"
    assert pairs.first_ms == pytest.approx((2, 2, 2))
    assert pairs.second_ms == pytest.approx((6, 6, 6))
    assert pairs.speedup == pytest.approx(3)


@given(st.lists(st.tuples(st.floats(0.5, 2), st.floats(1, 1000)), min_size=3, max_size=15), st.floats(1.1, 5))
def test_a_machine_whose_speed_changes_between_rounds_does_not_move_the_ratio(
    rounds: list[tuple[float, float]], ratio: float
) -> None:
    first = tuple(base * slowdown for base, slowdown in rounds)
    assert Pairs(first, tuple(ratio * value for value in first)).speedup == pytest.approx(ratio)


def test_one_bad_round_moves_nothing() -> None:
    assert Pairs((1.0, 1.0, 900.0), (2.0, 2.0, 2.0)).speedup == 2.0
    assert Pairs((1.0, 1.0, 900.0), (2.0, 2.0, 2.0)).first_median_ms == 1.0
