"""Permits and the refusal at the door."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from serve.batching import AdmissionController
from serve.errors import Draining, Overloaded


def test_one_more_than_the_limit_is_refused() -> None:
    """fault 9"""
    admission = AdmissionController(max_ongoing_requests=2, max_batch_rows=10)
    permits = [admission.acquire(1), admission.acquire(1)]
    with pytest.raises(Overloaded):
        admission.acquire(1)
    assert admission.num_ongoing == 2
    admission.release(permits[0])
    admission.acquire(1)


def test_a_permit_is_released_once() -> None:
    admission = AdmissionController(max_ongoing_requests=2, max_batch_rows=10)
    first, _ = admission.acquire(3), admission.acquire(3)
    admission.release(first)
    with pytest.raises(KeyError):
        admission.release(first)
    assert admission.num_ongoing == 1


def test_closed_refuses_as_draining_even_where_it_is_full() -> None:
    admission = AdmissionController(max_ongoing_requests=1, max_batch_rows=10)
    permit = admission.acquire(1)
    admission.close()
    with pytest.raises(Draining):
        admission.acquire(1)
    admission.release(permit)
    with pytest.raises(Draining):
        admission.acquire(1)


def test_retry_after_is_the_time_of_the_batches_ahead() -> None:
    admission = AdmissionController(max_ongoing_requests=3, max_batch_rows=10)
    permits = [admission.acquire(num_rows) for num_rows in (10, 10, 1)]
    for _ in range(50):
        admission.learn(0.2)
    with pytest.raises(Overloaded) as refusal:
        admission.acquire(1)
    assert refusal.value.retry_after_s == pytest.approx(3 * 0.2)
    admission.release(permits[0])
    assert admission.retry_after_s() == pytest.approx(2 * 0.2)


def test_retry_after_has_a_value_before_anything_was_learned() -> None:
    admission = AdmissionController(max_ongoing_requests=1, max_batch_rows=10)
    admission.acquire(1)
    with pytest.raises(Overloaded) as refusal:
        admission.acquire(1)
    assert refusal.value.retry_after_s == 1.0


@given(old=st.floats(0.001, 10), new=st.floats(0.001, 10))
def test_mean_follows_a_change_within_twenty_batches(old: float, new: float) -> None:
    admission = AdmissionController(max_ongoing_requests=1, max_batch_rows=1)
    admission.acquire(1)
    admission.learn(old)
    assert admission.retry_after_s() == pytest.approx(old)
    for _ in range(20):
        admission.learn(new)
        assert min(old, new) * 0.999 <= admission.retry_after_s() <= max(old, new) * 1.001
    assert abs(admission.retry_after_s() - new) <= 0.02 * abs(old - new) + 1e-9
