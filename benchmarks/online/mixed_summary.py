"""The results of `benchmarks.online.mixed` over its rounds, as JSON has them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.percentiles import rounded


def summarise_mixed(found: Mapping[str, Sequence[float]], share: float) -> dict[str, Any]:
    """Medians over the rounds.

    The two ratios are medians of each round's ratio. The room is the share of the capacity that interactive callers
    leave.

    Args:
        found: every round's `alone_p99`, `beside_p99` in ms and `bulk_alone`, `bulk_beside` in rows per second.
        share: share of the capacity that interactive callers ask for.
    """
    slower = [beside / alone for beside, alone in zip(found["beside_p99"], found["alone_p99"], strict=True)]
    of_room = [
        beside / (alone * (1 - share)) if alone else 0.0
        for beside, alone in zip(found["bulk_beside"], found["bulk_alone"], strict=True)
    ]
    return {
        "interactive_p99_ms_alone": rounded(statistics.median(found["alone_p99"])),
        "interactive_p99_ms_beside_bulk": rounded(statistics.median(found["beside_p99"])),
        "interactive_p99_ratio": rounded(statistics.median(slower)),
        "bulk_rows_per_s_alone": rounded(statistics.median(found["bulk_alone"]), 1),
        "bulk_rows_per_s_beside": rounded(statistics.median(found["bulk_beside"]), 1),
        "bulk_share_of_room": rounded(statistics.median(of_room)),
        "rounds": len(slower),
    }


def summarise_overload(below: Sequence[Sequence[float]], above: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and sums of the counts.

    The peak is the rate up to the capacity with the highest median goodput. `goodput_of_peak` is the median of each
    round's ratio to the goodput at that rate in the same round.

    Args:
        below: each round's goodput at each rate up to the capacity.
        above: each round's probe at the overload. `unanswered` requests got no outcome, which must never be; `expired`
            ones were admitted and answered 504 at their deadline.
    """
    by_rate = list(zip(*below, strict=True))
    peak = max(by_rate, key=statistics.median)
    of_peak = [probe["goodput_per_s"] / at_peak for probe, at_peak in zip(above, peak, strict=True) if at_peak]
    refusals_ms = [p99 for probe in above if (p99 := probe["refusal"]["p99_ms"]) is not None]
    by_status, errors = _total(above, "by_status"), _total(above, "errors")
    return {
        "rate": above[0]["rate"],
        "goodput_per_s": rounded(statistics.median(probe["goodput_per_s"] for probe in above), 1),
        "peak_goodput_per_s": rounded(statistics.median(peak), 1),
        "goodput_of_peak": rounded(statistics.median(of_peak)) if of_peak else None,
        "rounds_of_peak": [rounded(ratio) for ratio in of_peak],
        "refused": by_status.get("429", 0),
        "refusal_p99_ms": rounded(statistics.median(refusals_ms)) if refusals_ms else None,
        "expired": by_status.get("504", 0),
        "unanswered": sum(errors.values()),
        "by_status": by_status,
        "errors": errors,
        "mismatches": sum(probe["verified"]["mismatches"] for probe in above),
        "void": sum(probe["void"] for probe in above),
    }


def _total(probes: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for probe in probes:
        counts.update(probe[name])
    return dict(counts)
