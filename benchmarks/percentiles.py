"""Percentiles, each with a flag that says whether enough values support it.

Nearest rank: a percentile is one of the measured values, never a point between two of them. With fewer than
`samples_needed` values a percentile is given but flagged. The rule is the early-stopping rule of MLPerf's load
generator: if n answers are all below a bound, 99 % of all answers are below it with 99 % confidence only if
0.99**n <= 0.01, that is n >= 459.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)
_DOUBT = 0.01


def samples_needed(percent: int) -> int:
    """Fewest values that support this percentile: 7 for p50, 44 for p90, 459 for p99."""
    return math.ceil(math.log(_DOUBT) / math.log(percent / 100))


def summarise(values_ms: Sequence[float]) -> dict[str, Any]:
    """`n`, mean, p50, p90, p99 and max of values in ms, with `pNN_reliable`; None for each if there is no value."""
    n = len(values_ms)
    summary: dict[str, Any] = {"n": n, "mean_ms": rounded(float(np.mean(values_ms))) if n else None}
    for percent in PERCENTILES:
        value = float(np.percentile(values_ms, percent, method="inverted_cdf")) if n else None
        summary[f"p{percent}_ms"] = rounded(value)
        summary[f"p{percent}_reliable"] = n >= samples_needed(percent)
    summary["max_ms"] = rounded(max(values_ms, default=None))
    return summary


def rounded(value: float | None, digits: int = 3) -> float | None:
    """A number rounded for JSON; None stays None."""
    return None if value is None else round(value, digits)
