"""When a batch is cut ahead, and what the lead learns."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given
from queue_harness import BULK, A, Request, cost_model, cost_s, queue_of

from serve.batching import BatchWatchdog
from serve.batching.lead import Lead

MAX_ROWS = 8
COST = cost_model(MAX_ROWS, A)
ENDS_AT = cost_s(MAX_ROWS)
EARLY = ENDS_AT - Lead().seconds


def cut_at(*requests: Request, now: float = 0.0, expected_s: float = ENDS_AT, **limits_s: float) -> float | None:
    """Behind a batch that began at 0."""
    watchdog = BatchWatchdog(20)
    watchdog.begin(expected_s, 0.0)
    return Lead().cut_at(queue_of(*requests, cost=COST, **limits_s), watchdog, now)


def test_a_batch_that_is_not_full_is_cut_shortly_before_the_end_of_the_one_on_the_device() -> None:
    assert cut_at() is None
    assert cut_at(Request(A, 3)) == pytest.approx(EARLY)
    assert cut_at(Request(A, 3), now=0.1) == pytest.approx(EARLY), "it is late: now"


def test_a_batch_full_of_interactive_rows_is_cut_at_once() -> None:
    assert cut_at(Request(A, MAX_ROWS), now=0.003) == 0.003
    assert cut_at(Request(A, MAX_ROWS, priority=BULK)) == pytest.approx(EARLY)


def test_rows_that_wait_for_company_go_on_to_wait() -> None:
    assert cut_at(Request(A, 3), max_queue_delay_s=1.0) == 1.0


def test_a_request_that_expires_before_the_batch_could_begin_is_not_computed() -> None:
    assert cut_at(Request(A, MAX_ROWS, deadline=ENDS_AT - 1e-4)) == pytest.approx(ENDS_AT - 1e-4)
    assert cut_at(Request(A, MAX_ROWS, deadline=ENDS_AT + 1e-4)) == 0.0


def test_behind_a_batch_of_unknown_time_only_full_batches_are_cut() -> None:
    assert cut_at(Request(A, 3), expected_s=0.0) == math.inf
    assert cut_at(Request(A, MAX_ROWS), expected_s=0.0) == 0.0


@given(st.floats(0.0, 0.1))
def test_the_lead_becomes_what_is_needed(needed_s: float) -> None:
    lead = Lead()
    for _ in range(80):
        lead.learn(needed_s)
    assert lead.seconds == pytest.approx(needed_s, rel=0.05, abs=1e-5)


@given(st.lists(st.floats(-1e3, 1e3), max_size=40))
def test_whatever_is_learned_the_lead_is_no_less_than_nothing_and_comes_back(needs_s: list[float]) -> None:
    lead = Lead()
    for needed_s in needs_s:
        before_s = max(lead.seconds, 0.001)
        lead.learn(needed_s)
        assert 0.0 <= lead.seconds <= 3 * before_s, "one stall is forgotten soon"
    for _ in range(120):
        lead.learn(0.002)
    assert lead.seconds == pytest.approx(0.002, rel=0.05)
