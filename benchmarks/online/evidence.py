"""How many late answers a claim about a percentile can bear: the early-stopping statistic of MLPerf's load generator.

Every request is late or not, so the number of late ones among n is binomial. "At least 99 % are in time" may be said
with 99 % confidence under one condition: were the true share of late ones 1 %, so few late ones would be seen with a
chance of at most 1 %, that is P(Binomial(n, 0.01) <= late) <= 0.01. With none late this takes 459 requests, with one
662, with ten 2,130. With 270,336 (MLPerf's usual number) the allowed share is nearly the whole percent.
"""

from __future__ import annotations

from functools import cache

from scipy.special import bdtr

_DOUBT = 0.01


@cache
def allowed_late(num_requests: int, percent: int = 99) -> int:
    """Most late requests among `num_requests` with which the percentile is shown to be in time.

    Also 0 where even none late would not show it (fewer than 459 requests for p99). The claim then has only the
    `confidence` that it has, and a report must state it.
    """
    low, high = 0, num_requests
    while low < high:  # the chance grows with the number of late ones
        middle = (low + high + 1) // 2
        if bdtr(middle, num_requests, 1 - percent / 100) <= _DOUBT:
            low = middle
        else:
            high = middle - 1
    return low


def confidence(late: int, num_requests: int, percent: int = 99) -> float:
    """Confidence with which these requests show that at least `percent` % of all are in time; 0 if all are late."""
    if late >= num_requests:
        return 0.0
    return float(1 - bdtr(late, num_requests, 1 - percent / 100))


def requests_needed(late: int, percent: int = 99) -> int:
    """Fewest requests among which `late` may be late: 459 for none at p99."""
    high = 1
    while confidence(late, high, percent) < 1 - _DOUBT:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if confidence(late, middle, percent) < 1 - _DOUBT:
            low = middle
        else:
            high = middle
    return high
