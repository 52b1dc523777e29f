"""The search for the highest rate that passes: up or down in steps until it is bracketed, then halved, geometrically.

Pure: what a try is, is the caller's affair. A noisy system need not answer alike twice; the result is then one of
several rates that it might have been, which is why searches are repeated and their median is reported.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSettings:
    """How far and how finely.

    Attributes:
        step: the bracket grows by this factor.
        resolution: the search ends when the failing rate is at most this share above the passing one.
        low: no lower rate is tried; a search that fails even here finds 0.
        high: no higher rate is tried.
    """

    step: float = 1.6
    resolution: float = 0.1
    low: float = 1.0
    high: float = 5000.0

    def __post_init__(self) -> None:
        if not (self.step > 1 and self.resolution > 0 and 0 < self.low < self.high):
            raise ValueError("a search needs step above 1, resolution above 0, and low below high")


async def find_max_rate(passes: Callable[[float], Awaitable[bool]], start: float, settings: SearchSettings) -> float:
    """The highest rate that passed, within `resolution` of one that failed (or at `high`); 0 if none passed."""
    rate = min(max(start, settings.low), settings.high)
    passed, failed = 0.0, math.inf
    while passed == 0.0 or failed == math.inf:
        if await passes(rate):
            passed = rate
            if rate >= settings.high:
                return passed
            rate = min(rate * settings.step, settings.high)
        else:
            failed = rate
            if rate <= settings.low:
                return 0.0
            rate = max(rate / settings.step, settings.low)
    while failed / passed > 1 + settings.resolution:
        middle = math.sqrt(passed * failed)
        if await passes(middle):
            passed = middle
        else:
            failed = middle
    return passed
