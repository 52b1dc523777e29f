"""One rate tried: are 99 of 100 requests answered in time, and how sure is that?

A probe passes if no more requests are late than `evidence.allowed_late` allows for their number. Late is every request
that is not answered 200 within the bound: slow answers, refusals, errors. A probe that cannot pass any more ends early,
so that the server is not buried under seconds of backlog. The next probe begins once the server answers a lone request
as quickly as an idle server does.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.online.errors import Unsettled, WrongAnswers
from benchmarks.online.evidence import allowed_late, confidence
from benchmarks.online.generator import Generator, Offer
from benchmarks.online.summary import summarise_offer
from benchmarks.online.tally import Tally
from benchmarks.online.target import Target, describe_outcome
from benchmarks.percentiles import rounded, summarise

_SETTLED_ANSWERS = 3


@dataclass(frozen=True)
class ProbeSettings:
    """How each rate is tried. `max_s` bounds a probe of a slow system, `min_s` one of a fast system.

    Attributes:
        settle_s: longest wait for the system to come to rest before a probe.
        void_retries: further tries of a probe whose generator lagged.
    """

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

    def offer(self, rate: float, number: int, *, ends_early: bool) -> Offer:
        """The offer of probe `number`; each number has arrivals of its own."""
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
        if not ends_early:
            return offer
        measured = sum(at >= self.warmup_s for at in offer.draw())
        return dataclasses.replace(offer, allowed_late=allowed_late(measured))


@dataclass
class Prober:
    """Tries rates on one system and keeps every try in `probes`, as JSON has them.

    Attributes:
        cpu_s: CPU time of the whole system so far, where it runs on this machine.
    """

    generator: Generator
    target: Target
    settings: ProbeSettings
    idle_ms: float
    cpu_s: Callable[[], float] | None = None
    probes: list[dict[str, Any]] = field(default_factory=list)

    async def passes(self, rate: float) -> bool:
        """Whether the system keeps the bound at this rate. Raises WrongAnswers, Unsettled, OSError.

        A probe whose generator lagged is void and tried again. If the second try is void too, its failure counts, since
        lag never makes a latency look shorter. Its pass does not count: the load was not the one that was meant.
        """
        for _ in range(1 + self.settings.void_retries):
            probe = await self.measure(rate, ends_early=True)
            if not probe["void"]:
                break
        return bool(probe["passed"] and not probe["void"])

    async def measure(self, rate: float, *, ends_early: bool = False) -> dict[str, Any]:
        """One probe, from a settled system. Raises WrongAnswers, Unsettled, OSError."""
        await self.settle()
        offer = self.settings.offer(rate, len(self.probes), ends_early=ends_early)
        cpu_before = self.cpu_s() if self.cpu_s else 0.0
        seen = await self.generator.offer(self.target, offer)
        probe = judge(seen, offer, self.settings.max_lag_ms)
        if self.cpu_s and seen.answered_with_warmup:
            probe["cpu_ms_per_request"] = rounded(1000 * (self.cpu_s() - cpu_before) / seen.answered_with_warmup)
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
                    raise Unsettled(
                        f"{self.settings.settle_s:g} s after a probe a lone request was answered "
                        f"{describe_outcome(exchange)} "
                        f"({exchange.latency_ms:.1f} ms; {self.idle_ms:.1f} ms on the idle system)"
                    )
        finally:
            await client.close()


def judge(seen: Tally, offer: Offer, max_lag_ms: float) -> dict[str, Any]:
    """A probe as JSON has it: the numbers of its offer and the verdict.

    `confidence` is None for a probe that ended early: its requests are no sample of the whole.
    """
    allowed = allowed_late(seen.scheduled)
    return {
        **summarise_offer(seen, offer, max_lag_ms),
        "late": seen.late,
        "allowed_late": allowed,
        "confidence": None if seen.stopped_early else rounded(confidence(seen.late, seen.scheduled), 4),
        "passed": not seen.stopped_early and seen.scheduled > 0 and seen.late <= allowed,
        "stopped_early": seen.stopped_early,
        "refusal": summarise(seen.refusals_ms),
    }
