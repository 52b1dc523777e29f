"""The search for the highest rate that passes: up or down in steps until it is bracketed, then by halving the bracket.

The bracket is halved geometrically. What a try is, the caller decides. A noisy system need not answer two equal tries
alike, so a result is one of several possible ones; searches are therefore repeated and their median is reported.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.online.errors import UnusableInput


@dataclass(frozen=True)
class SearchSettings:
    """How far and how finely to search.

    Attributes:
        step: factor by which the bracket grows.
        resolution: the search ends when the failing rate is at most this share above the passing one.
        low: lowest rate that is tried; a search that fails even there finds 0.
        high: highest rate that is tried.
    """

    step: float = 1.6
    resolution: float = 0.1
    low: float = 1.0
    high: float = 5000.0

    def __post_init__(self) -> None:
        if not (self.step > 1 and self.resolution > 0 and 0 < self.low < self.high):
            raise UnusableInput("a search needs --step above 1, --resolution above 0, and --low below --high")


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


def tries_left(passed: float, failed: float, settings: SearchSettings) -> int:
    """An estimate of the tries that the search still takes.

    Args:
        passed: highest rate that passed so far, 0 where none did.
        failed: lowest rate that failed so far, infinite where none did.
    """
    is_open = passed == 0.0 or failed == math.inf
    bracket = settings.step if is_open else failed / passed
    halvings = math.ceil(math.log2(max(1.0, math.log(bracket) / math.log1p(settings.resolution))))
    return halvings + is_open
