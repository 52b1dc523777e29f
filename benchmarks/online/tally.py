"""What one generator process saw of a probe, small enough to be sent to another: numbers, no bodies."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.online.client import Exchange
from benchmarks.online.wire import difference, read_numbers


@dataclass
class Tally:
    """Of the measured exchanges, without the warm-up. `late`: not answered 200 within the bound, whatever the cause."""

    scheduled: int = 0
    answered: int = 0
    """The warm-up's too: what the server worked for."""
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
    connections: int = 0
    stopped_early: bool = False

    @property
    def offered(self) -> int:
        return sum(self.by_status.values()) + sum(self.errors.values())


def tally(
    exchanges: Sequence[Exchange],
    *,
    scheduled: int,
    bound_ms: float,
    alone: Mapping[int, Sequence[float]],
    tolerance: float,
) -> Tally:
    """Count ended exchanges. A latency counts where it was answered 200 or given up (its wait so far)."""
    seen = Tally(scheduled=scheduled)
    for exchange in exchanges:
        seen.late += is_late(exchange, bound_ms)
        seen.lags_ms.append(exchange.send_lag_ms if exchange.is_sent else exchange.latency_ms)
        if exchange.error is not None:
            seen.errors[exchange.error] += 1
        else:
            seen.by_status[str(exchange.status)] += 1
        if exchange.status == 200:
            seen.ok += 1
            _compare(seen, exchange, alone, tolerance)
        if exchange.status == 200 or exchange.error == "timeout":
            seen.latencies_ms.append(exchange.latency_ms)
        elif exchange.status == 429:
            seen.refusals_ms.append(exchange.latency_ms)
    return seen


def is_late(exchange: Exchange, bound_ms: float) -> bool:
    """For an exchange that has ended."""
    return exchange.status != 200 or exchange.latency_ms > bound_ms


def _compare(seen: Tally, exchange: Exchange, alone: Mapping[int, Sequence[float]], tolerance: float) -> None:
    expected = alone.get(exchange.record)
    if expected is None:
        return
    differs = difference(read_numbers(exchange.body), expected)
    seen.compared += 1
    seen.mismatches += not differs <= tolerance  # also counts NaN
    seen.max_abs_diff = max(seen.max_abs_diff, differs)


def merge(tallies: Iterable[Tally]) -> Tally:
    """Several processes' shares of one probe."""
    whole = Tally()
    for share in tallies:
        whole.scheduled += share.scheduled
        whole.answered += share.answered
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
        whole.connections += share.connections
        whole.stopped_early |= share.stopped_early
    return whole


class LateWatch:
    """Sees while sending that a probe cannot pass any more, so that an overloaded server is not buried first.

    Exchanges are judged in the order of their due times, each once: when it has ended, or when its bound has passed.
    """

    def __init__(self, bound_ms: float, allowed: int, measured_from: float) -> None:
        self.late = 0
        self._bound_ms = bound_ms
        self._allowed = allowed
        self._measured_from = measured_from
        self._open: deque[Exchange] = deque()

    def __call__(self, exchange: Exchange) -> bool:
        """Told of an exchange that was just submitted; whether the probe has failed."""
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
