"""The numbers of one rate, and when a rate is void."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import documented_answer

from benchmarks.online.client import Exchange
from benchmarks.online.generator import Offer
from benchmarks.online.load import summarise_load
from benchmarks.online.summary import lag_reason
from benchmarks.online.tally import merge, tally
from benchmarks.online.target import Ready, Target
from benchmarks.online.wire import numbers

BODY = json.dumps({"records": [{"amount": 50.0}]}).encode()


def answered(
    due: float, latency_s: float, *, status: int = 200, lag_s: float = 0.0, rows: int = 1, batch_rows: int = 4
) -> Exchange:
    body = json.dumps({"records": [{"amount": 50.0}] * rows}).encode()
    exchange = Exchange(due, b"", record=0)
    exchange.sent, exchange.finished, exchange.status = due + lag_s, due + latency_s, status
    exchange.body = json.dumps(documented_answer(body, batch_rows)).encode() if status == 200 else b"{}"
    return exchange


def failed(due: float, waited_s: float, error: str, *, is_sent: bool = True) -> Exchange:
    exchange = Exchange(due, b"", record=0)
    exchange.sent, exchange.finished, exchange.error = due if is_sent else math.nan, due + waited_s, error
    return exchange


OFFER = Offer(rate=10.0, duration_s=2.0, bound_ms=100.0)


def summary(exchanges: list[Exchange], alone: Mapping[int, Sequence[float]] | None = None) -> dict[str, Any]:
    """As `benchmarks.online.load` reports these exchanges; two generator processes saw them."""
    expected = alone or {}
    ready = Ready(Target("h", 1, [], expected, 1e-6), 1.0, len({tuple(values) for values in expected.values()}))
    shares = [
        tally(share, scheduled=len(share), bound_ms=OFFER.bound_ms, alone=expected, tolerance=1e-6)
        for share in (exchanges[::2], exchanges[1::2])
    ]
    return summarise_load(merge(shares), OFFER, ready, 10.0, is_verified=alone is not None)


def verified(exchanges: list[Exchange], alone: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    found: dict[str, Any] = summary(exchanges, alone)["verified"]
    return found


def test_each_request_is_counted_once_and_only_answers_in_time_are_goodput() -> None:
    result = summary(
        [
            *(answered(step, 0.02) for step in range(6)),
            answered(6, 0.5),
            answered(7, 0.001, status=429),
            failed(8, 3.0, "timeout"),
            failed(9, 0.1, "connection closed by the server"),
        ]
    )
    assert (result["scheduled"], result["sent"], result["answered"], result["ok"]) == (10, 10, 8, 7)
    assert result["by_status"] == {"200": 7, "429": 1}
    assert result["errors"] == {"connection closed by the server": 1, "timeout": 1}
    assert result["goodput_per_s"] == 3.0
    assert result["ok_per_s"] == 3.5


def test_a_request_given_up_stays_in_the_latency_and_a_refusal_does_not() -> None:
    result = summary([answered(0, 0.02), answered(1, 0.001, status=429), failed(2, 3.0, "timeout")])
    assert result["latency"]["n"] == 2
    assert result["latency"]["max_ms"] == 3000


def test_the_answers_own_times_are_averaged() -> None:
    result = summary([answered(0, 0.010), answered(1, 0.020)])
    assert result["server_ms"] == {"queue": 1.0, "compute": 3.0, "total": 4.5, "overhead": 0.5}
    assert result["outside_ms"] == 10.5


def test_batch_rows_per_batch_undoes_the_bias_of_large_batches() -> None:
    """One batch of 9 (nine requests) and one of 1: the mean batch is 5, yet most rows met a batch of 9."""
    exchanges = [*(answered(step, 0.01, batch_rows=9) for step in range(9)), answered(9, 0.01, batch_rows=1)]
    assert summary(exchanges)["batch_rows"] == {"per_row": 8.2, "per_request": 8.2, "per_batch": 5.0, "max": 9.0}


def test_batch_rows_are_weighted_by_the_rows_of_a_request() -> None:
    """A batch of 6 rows from requests of 4 and 2, and a batch of 2 from one request."""
    exchanges = [
        answered(0, 0.01, rows=4, batch_rows=6),
        answered(1, 0.01, rows=2, batch_rows=6),
        answered(2, 0.01, rows=2, batch_rows=2),
    ]
    assert summary(exchanges)["batch_rows"] == {"per_row": 5.0, "per_request": 4.667, "per_batch": 4.0, "max": 6.0}


def test_nothing_answered_leaves_nulls_that_are_json() -> None:
    result = summary([failed(0, 3.0, "timeout"), failed(1, 3.0, "connect: refused", is_sent=False)])
    json.dumps(result, allow_nan=False)
    assert result["batch_rows"]["per_batch"] is None
    assert result["outside_ms"] is None
    assert result["sent"] == 1


def test_a_generator_in_time_is_not_void() -> None:
    result = summary([answered(step, 0.02, lag_s=0.0005) for step in range(20)])
    assert (result["void"], result["lagged"], result["void_reasons"]) == (False, False, [])


def test_a_lagging_generator_is_void_with_its_reason() -> None:
    result = summary([answered(step, 0.08, lag_s=0.03) for step in range(20)])
    assert result["void"]
    assert result["lagged"]
    assert result["void_reasons"] == ["the generator lagged: p99 of the send lag 30.0 ms, limit 10.0 ms"]


def test_a_request_that_never_found_a_connection_is_lag() -> None:
    result = summary([answered(0, 0.02), failed(1, 3.0, "timeout", is_sent=False)])
    assert result["lagged"]
    assert result["sent"] == 1


@pytest.mark.parametrize(
    ("lag_ms", "p50_ms", "is_void"),
    [
        (9.9, 100.0, False),  # below the absolute limit
        (10.1, 100.0, True),
        (4.0, 6.0, True),  # more than half of the median
        (2.9, 6.0, False),
        (1.9, 1.0, False),  # one time slice is always allowed
        (2.1, 1.0, True),
        (9.0, None, False),  # nothing was answered: only the absolute limit is left
        (None, None, True),
    ],
)
def test_the_lag_limit(lag_ms: float | None, p50_ms: float | None, is_void: bool) -> None:
    assert (lag_reason(lag_ms, p50_ms, 10.0) is not None) == is_void


def test_answers_are_compared_with_those_given_alone() -> None:
    alone = {0: numbers(documented_answer(BODY))}
    right, refused, other = answered(0, 0.01), answered(1, 0.01, status=429), answered(2, 0.01)
    other.record = 7  # not asked alone
    found = verified([right, refused, other], alone)
    assert found == {"compared": 1, "mismatches": 0, "max_abs_diff": 0.0, "records": 1, "distinct_answers": 1}


@given(st.floats(2e-6, 1), st.sampled_from([-1, 1]))
def test_any_difference_beyond_the_tolerance_is_a_mismatch(difference: float, sign: int) -> None:
    expected = [value + sign * difference for value in numbers(documented_answer(BODY))]
    found = verified([answered(0, 0.01)], {0: expected})
    assert found["mismatches"] == 1
    assert found["max_abs_diff"] == pytest.approx(difference)


@pytest.mark.parametrize("expected", [[0.5], [math.nan, math.nan], []])
def test_a_missing_or_undefined_number_is_a_mismatch(expected: list[float]) -> None:
    assert verified([answered(0, 0.01)], {0: expected})["mismatches"] == 1


def test_numbers_of_a_regressor_are_found_in_order_of_their_names() -> None:
    answer = {"predictions": [{"q05": 1.0, "mean": 3, "label": "x", "sure": True}], "batch_rows": 9}
    assert numbers(answer) == [3.0, 1.0]
