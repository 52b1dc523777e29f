"""A rate that a search found is tried again and again: it stands only if all rounds together support the claim.

The requests of all rounds are pooled: five rounds of 1,000 may have as many late ones among them as one of 5,000 may. A
rate that does not stand is lowered by a step, and all its rounds are run anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.online.evidence import allowed_late, confidence
from benchmarks.percentiles import rounded

Measure = Callable[[float], Awaitable[dict[str, Any]]]


async def confirm(
    measure: Measure, rate: float, *, rounds: int, backoff: float, tries: int
) -> tuple[float, list[dict[str, Any]]]:
    """The confirmed rate, 0 if none of `tries` rates stood, and what was found at each rate that was tried.

    Args:
        measure: one whole probe at a rate, which never ends early.
        backoff: a rate that does not stand is divided by this.
    """
    found = []
    for _ in range(tries if rate > 0 else 0):
        probes = []
        for _ in range(rounds):
            probes.append(await measure(rate))
            if not can_stand(probes, rounds):
                break
        found.append(pooled(rate, probes, rounds))
        if found[-1]["confirmed"]:
            return rate, found
        rate /= backoff
    return 0.0, found


def can_stand(probes: list[dict[str, Any]], rounds: int) -> bool:
    """False once no later round can make up for what was late or void so far."""
    late, asked = sum(probe["late"] for probe in probes), sum(probe["scheduled"] for probe in probes)
    expected = round(asked * rounds / len(probes))
    return late <= allowed_late(expected) and not any(probe["void"] for probe in probes)


def pooled(rate: float, probes: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """All rounds at one rate as one, as JSON has it."""
    late, asked = sum(probe["late"] for probe in probes), sum(probe["scheduled"] for probe in probes)
    is_whole = len(probes) == rounds and not any(probe["void"] for probe in probes)
    return {
        "rate": rounded(rate),
        "rounds": len(probes),
        "passed_rounds": sum(probe["passed"] for probe in probes),
        "scheduled": asked,
        "late": late,
        "allowed_late": allowed_late(asked),
        "confidence": rounded(confidence(late, asked), 4),
        "p99_ms": [probe["latency"]["p99_ms"] for probe in probes],
        "confirmed": is_whole and late <= allowed_late(asked),
    }
