"""Rates that rise until the server is past its knee: the rate from which on more load means less goodput."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GOOD_SHARE = 0.9
MAX_RAISED = 15
"""Rates that are tried after the given ones."""


def rising_rates(given: Sequence[float], factor: float, results: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """The given rates, then ever higher ones until the knee is passed.

    Args:
        factor: each further rate is this many times the one before.
        results: of the rates so far; the caller appends each rate's result before it asks for the next rate.
    """
    yield from given
    rate = max(given)
    for _ in range(MAX_RAISED):
        if why_past_knee(results) is not None:
            return
        rate = round(rate * factor, 1)
        yield rate


def why_past_knee(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no higher rate is worth trying; None as long as one is.

    Goodput falls where a server lets requests wait, and levels out where it refuses them: both end the rise.
    """
    last = results[-1]
    if last["lagged"]:
        return f"at {last['rate']:g}/s the generator lagged: this machine cannot offer more"
    best = max(result["goodput_per_s"] for result in results)
    if last["goodput_per_s"] < GOOD_SHARE * best:
        return f"goodput fell from {best:g}/s to {last['goodput_per_s']:g}/s"
    if len(results) > 1 and not any(is_good(result) for result in results[-2:]):
        return f"two rates in a row had a goodput below {GOOD_SHARE:.0%} of the offered rate"
    return None


def is_good(result: Mapping[str, Any]) -> bool:
    """Whether nearly all requests of this rate were answered in time."""
    offered_per_s: float = result["scheduled"] / result["duration_s"]
    return bool(result["goodput_per_s"] >= GOOD_SHARE * offered_per_s)


def knee(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As JSON has it: the highest rate that went well, and why the rise ended."""
    good = [result["rate"] for result in results if is_good(result) and not result["void"]]
    return {
        "highest_good_rate": max(good, default=None),
        "ended": why_past_knee(results) or f"{MAX_RAISED} rates were added, and goodput still rises",
    }
