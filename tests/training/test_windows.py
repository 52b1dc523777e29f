"""Windows over a key's past equal a count of one event at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.windows import Past

# Times and windows lie on a grid, so that the edge of a window falls on events and no rounding moves it.
EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40), st.integers(0, 9), st.booleans()), min_size=1)
WINDOWS = st.integers(0, 60)


def columns(events: list[tuple[int, int, int, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    key, time, values, happened = map(np.array, zip(*events, strict=True))
    return key, time / 4, values.astype(float), happened


def before(key: np.ndarray, time: np.ndarray, event: int) -> np.ndarray:
    """Earlier events of the same key. Of two events at the same time, the one given first is the earlier."""
    earlier = (time < time[event]) | ((time == time[event]) & (np.arange(len(time)) < event))
    return np.flatnonzero((key == key[event]) & earlier)


@given(EVENTS, WINDOWS)
def test_totals_are_of_the_window_before(events: list[tuple[int, int, int, bool]], window: int) -> None:
    key, time, values, _ = columns(events)
    past = Past(key, time)
    count, total = past.total(window / 4), past.total(window / 4, values)
    for event in range(len(key)):
        inside = [other for other in before(key, time, event) if time[event] - time[other] <= window / 4]
        assert count[event] == len(inside)
        assert total[event] == pytest.approx(values[inside].sum())


@given(EVENTS)
def test_the_last_event_is_the_newest_of_the_same_key(events: list[tuple[int, int, int, bool]]) -> None:
    key, time, _, _ = columns(events)
    since = Past(key, time).since_last()
    for event in range(len(key)):
        earlier = before(key, time, event)
        expected = time[event] - time[earlier].max() if len(earlier) else np.nan
        np.testing.assert_equal(since[event], expected)


@given(EVENTS, WINDOWS, st.integers(1, 20))
def test_only_reported_events_count(events: list[tuple[int, int, int, bool]], window: int, delay: int) -> None:
    key, time, _, happened = columns(events)
    reported = Past(key, time).reported(window / 4, delay / 4, happened)
    for event in range(len(key)):
        ago = time[event] - time
        known = (key == key[event]) & (ago > delay / 4) & (ago <= (delay + window) / 4)
        expected = happened[known].mean() if known.any() else np.nan
        np.testing.assert_allclose(reported[event], expected)


def test_without_a_delay_an_event_does_not_count_itself() -> None:
    key, time = np.zeros(3, np.int64), np.array([0.0, 1.0, 1.0])
    np.testing.assert_equal(Past(key, time).reported(5.0, 0.0, np.array([False, True, True])), [np.nan, 0.0, 0.0])
