"""The outcomes of an offer's requests, as numbers without bodies: small enough to be sent between processes."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.online.answers import AnswerTimes
from benchmarks.online.client import Exchange
from benchmarks.online.wire import difference, numbers


@dataclass
class Tally:
    """Counts of the measured requests, without the warm-up.

    Attributes:
        late: requests that were not answered 200 within the bound, whatever the cause.
        latencies_ms: of the answers 200, and the wait so far of the requests that were given up: to leave those out
            would hide the worst. Refusals are fast and would flatter, so they are kept apart.
        lags_ms: from the due time to the write on the socket. A request that was given up unsent counts with its wait.
    """

    scheduled: int = 0
    sent: int = 0
    answered_with_warmup: int = 0
    ok: int = 0
    late: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    refusals_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    by_status: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    mismatches: int = 0
    max_abs_diff: float = 0.0
    answer_times: AnswerTimes = field(default_factory=AnswerTimes)
    connections: int = 0
    stopped_early: bool = False

    @property
    def answered(self) -> int:
        """Requests with an answer of any status."""
        return sum(self.by_status.values())

    @property
    def offered(self) -> int:
        """Requests that were submitted; fewer than `scheduled` where the offer ended early."""
        return self.answered + sum(self.errors.values())


def tally(
    exchanges: Sequence[Exchange],
    *,
    scheduled: int,
    bound_ms: float,
    alone: Mapping[int, Sequence[float]],
    tolerance: float,
) -> Tally:
    """Count exchanges that have ended.

    Args:
        alone: by record, the numbers that it was answered alone; under load the answer must be the same.
    """
    seen = Tally(scheduled=scheduled)
    for exchange in exchanges:
        seen.late += is_late(exchange, bound_ms)
        seen.sent += exchange.is_sent
        if exchange.is_sent or exchange.error == "timeout":
            seen.lags_ms.append(exchange.send_lag_ms if exchange.is_sent else exchange.latency_ms)
        if exchange.error is not None:
            seen.errors[exchange.error] += 1
        else:
            seen.by_status[str(exchange.status)] += 1
        if exchange.status == 200:
            seen.ok += 1
            _read(seen, exchange, alone, tolerance)
        if exchange.status == 200 or exchange.error == "timeout":
            seen.latencies_ms.append(exchange.latency_ms)
        elif exchange.status == 429:
            seen.refusals_ms.append(exchange.latency_ms)
    return seen


def is_late(exchange: Exchange, bound_ms: float) -> bool:
    """For an exchange that has ended."""
    return exchange.status != 200 or exchange.latency_ms > bound_ms


def _read(seen: Tally, exchange: Exchange, alone: Mapping[int, Sequence[float]], tolerance: float) -> None:
    """Read an answer 200: the times that it states, and whether it is the right one."""
    try:
        answer: Any = json.loads(exchange.body)
    except ValueError:
        answer = None
    seen.answer_times.add(answer, exchange.latency_ms)
    expected = alone.get(exchange.record)
    if expected is None:
        return
    differs = difference(numbers(answer), expected)
    seen.compared += 1
    seen.mismatches += not differs <= tolerance  # also counts NaN
    seen.max_abs_diff = max(seen.max_abs_diff, differs)


def merge(shares: Iterable[Tally]) -> Tally:
    """The shares of several processes as one."""
    whole = Tally()
    for share in shares:
        whole.scheduled += share.scheduled
        whole.sent += share.sent
        whole.answered_with_warmup += share.answered_with_warmup
        whole.ok += share.ok
        whole.late += share.late
        whole.latencies_ms += share.latencies_ms
        whole.refusals_ms += share.refusals_ms
        whole.lags_ms += share.lags_ms
        whole.by_status += share.by_status
        whole.errors += share.errors
        whole.compared += share.compared
        whole.mismatches += share.mismatches
        whole.max_abs_diff = max(whole.max_abs_diff, share.max_abs_diff)
        whole.answer_times.merge(share.answer_times)
        whole.connections += share.connections
        whole.stopped_early |= share.stopped_early
    return whole


class LateWatch:
    """Sees while the load is sent that it cannot pass any more, so that an overloaded server is not buried first.

    Exchanges are judged in the order of their due times, each once: when it has ended, or when its bound has passed.
    """

    def __init__(self, bound_ms: float, allowed: int, measured_from: float) -> None:
        self.late = 0
        self._bound_ms = bound_ms
        self._allowed = allowed
        self._measured_from = measured_from
        self._open: deque[Exchange] = deque()

    def __call__(self, exchange: Exchange) -> bool:
        """Take note of an exchange that was just submitted; returns whether more are late than allowed."""
        now = exchange.due
        if now >= self._measured_from:
            self._open.append(exchange)
        while self._open:
            oldest = self._open[0]
            if oldest.is_finished:
                self.late += is_late(oldest, self._bound_ms)
            elif 1000 * (now - oldest.due) > self._bound_ms:
                self.late += 1
            else:
                break
            self._open.popleft()
        return self.late > self._allowed
