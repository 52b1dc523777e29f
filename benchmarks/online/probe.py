"""One rate tried: are 99 of 100 requests answered in time? With how many requests, and with what certainty.

A probe passes if no more requests are late than `evidence.allowed_late` of its number. Late is what was not answered
200 within the bound: slow answers, refusals, errors. A probe that cannot pass any more is broken off, so that a server
is not buried under seconds of backlog; the next begins only when it answers again as quickly as an idle one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.online.evidence import allowed_late, confidence
from benchmarks.online.generator import Generator, Offer, Target
from benchmarks.online.summary import lag_reason
from benchmarks.online.tally import Tally
from benchmarks.percentiles import rounded, summarise

_SETTLED_ANSWERS = 3


class WrongAnswers(Exception):
    """Under load the system answered otherwise than alone: no number of it is worth anything."""


class Unsettled(Exception):
    """The system did not come to rest between two probes."""


@dataclass(frozen=True)
class ProbeSettings:
    """How each rate is tried. `max_s` bounds a probe of a slow system, `min_s` one of a fast system."""

    bound_ms: float = 100.0
    min_requests: int = 1000
    min_s: float = 4.0
    max_s: float = 12.0
    warmup_s: float = 1.0
    arrivals: str = "poisson"
    seed: int = 1
    connections: int = 64
    max_connections: int = 1024
    timeout_s: float = 10.0
    settle_s: float = 30.0
    max_lag_ms: float = 10.0
    void_retries: int = 1

    def duration_s(self, rate: float) -> float:
        """Long enough for `min_requests`, within `min_s` and `max_s`."""
        return min(self.max_s, max(self.min_s, self.min_requests / rate))

    def offer(self, rate: float, number: int, *, gives_up: bool) -> Offer:
        """The `number`-th probe's offer; every number has arrivals of its own."""
        offer = Offer(
            rate=rate,
            duration_s=self.duration_s(rate),
            warmup_s=self.warmup_s,
            bound_ms=self.bound_ms,
            arrivals=self.arrivals,
            seed=self.seed + number,
            connections=self.connections,
            max_connections=self.max_connections,
            timeout_s=self.timeout_s,
        )
        if not gives_up:
            return offer
        measured = sum(at >= self.warmup_s for at in offer.draw())
        return Offer(**{**vars(offer), "allowed_late": allowed_late(measured)})


@dataclass
class Prober:
    """Tries rates on one system and remembers every try in `probes`, as JSON has them."""

    generator: Generator
    target: Target
    settings: ProbeSettings
    idle_ms: float
    cpu_s: Callable[[], float] | None = None
    """CPU time of the whole system so far, where it runs on this machine."""
    probes: list[dict[str, Any]] = field(default_factory=list)

    async def passes(self, rate: float) -> bool:
        """Whether the system keeps the bound at this rate. Raises WrongAnswers, Unsettled.

        A probe whose generator lagged is void and tried again. If that one is void too its failure stands, since lag
        never makes a latency look shorter, but a pass does not: the load was not the one that was meant.
        """
        for _ in range(1 + self.settings.void_retries):
            probe = await self.measure(rate, gives_up=True)
            if not probe["void"]:
                break
        return bool(probe["passed"] and not probe["void"])

    async def measure(self, rate: float, *, gives_up: bool = False) -> dict[str, Any]:
        """One probe, from a settled system."""
        await self.settle()
        offer = self.settings.offer(rate, len(self.probes), gives_up=gives_up)
        cpu_before = self.cpu_s() if self.cpu_s else 0.0
        seen = await self.generator.offer(self.target, offer)
        probe = judge(seen, offer, self.settings.max_lag_ms)
        if self.cpu_s and seen.answered:
            probe["cpu_ms_per_request"] = rounded(1000 * (self.cpu_s() - cpu_before) / seen.answered)
        self.probes.append(probe)
        if seen.mismatches:
            raise WrongAnswers(
                f"{seen.mismatches} of {seen.compared} answers at {rate:g}/s differ from those given alone, by up to "
                f"{seen.max_abs_diff:.3g}"
            )
        return probe

    async def settle(self) -> None:
        """Wait until a lone request is answered about as on an idle system, a few times in a row. Raises Unsettled."""
        deadline = time.monotonic() + self.settings.settle_s
        quick = 0
        client = self.target.client(1)
        try:
            await client.open()
            while quick < _SETTLED_ANSWERS:
                exchange = await client.ask(self.target.requests[0])
                is_quick = exchange.status == 200 and exchange.latency_ms <= 2 * self.idle_ms + 5
                quick = quick + 1 if is_quick else 0
                if time.monotonic() > deadline:
                    raise Unsettled(f"{self.settings.settle_s:g} s after a probe: {exchange.status} {exchange.error}")
        finally:
            await client.close()


def judge(seen: Tally, offer: Offer, max_lag_ms: float) -> dict[str, Any]:
    """A probe as JSON has it."""
    allowed = allowed_late(seen.scheduled)
    latency, lag = summarise(seen.latencies_ms), summarise(seen.lags_ms)
    reason = lag_reason(lag["p99_ms"], latency["p50_ms"], max_lag_ms)
    return {
        "rate": rounded(offer.rate),
        "duration_s": rounded(offer.duration_s),
        "scheduled": seen.scheduled,
        "offered": seen.offered,
        "late": seen.late,
        "allowed_late": allowed,
        "confidence": None if seen.stopped_early else rounded(confidence(seen.late, seen.scheduled), 4),
        "passed": not seen.stopped_early and seen.scheduled > 0 and seen.late <= allowed,
        "stopped_early": seen.stopped_early,
        "ok": seen.ok,
        "goodput_per_s": None if seen.stopped_early else rounded((seen.scheduled - seen.late) / offer.duration_s),
        "by_status": dict(sorted(seen.by_status.items())),
        "errors": dict(sorted(seen.errors.items())),
        "latency": latency,
        "refusal": summarise(seen.refusals_ms),
        "send_lag": lag,
        "verified": _verified(seen),
        "void": reason is not None,
        "void_reasons": [reason] if reason else [],
    }


def _verified(seen: Tally) -> Mapping[str, Any]:
    return {
        "compared": seen.compared,
        "mismatches": seen.mismatches,
        "max_abs_diff": seen.max_abs_diff if seen.max_abs_diff < float("inf") else None,
    }
