"""One offer's counts as JSON has them, and whether the load was the one that was meant."""

from __future__ import annotations

from typing import Any

from benchmarks.online.generator import Offer
from benchmarks.online.tally import Tally
from benchmarks.percentiles import rounded, summarise

MIN_LAG_LIMIT_MS = 2.0


def summarise_offer(seen: Tally, offer: Offer, max_lag_ms: float) -> dict[str, Any]:
    """The numbers that every benchmark reports of an offer; benchmarks/README.md says what each means.

    `goodput_per_s` is None for an offer that ended early: what would have become of the rest is not known.
    """
    latency, lag = summarise(seen.latencies_ms), summarise(seen.lags_ms)
    reason = lag_reason(lag["p99_ms"], latency["p50_ms"], max_lag_ms)
    return {
        "rate": rounded(offer.rate),
        "duration_s": rounded(offer.duration_s),
        "scheduled": seen.scheduled,
        "offered": seen.offered,
        "ok": seen.ok,
        "goodput_per_s": None if seen.stopped_early else rounded((seen.scheduled - seen.late) / offer.duration_s),
        "by_status": dict(sorted(seen.by_status.items())),
        "errors": dict(sorted(seen.errors.items())),
        "latency": latency,
        "send_lag": lag,
        "verified": {
            "compared": seen.compared,
            "mismatches": seen.mismatches,
            "max_abs_diff": seen.max_abs_diff if seen.max_abs_diff < float("inf") else None,
        },
        "void": reason is not None,
        "void_reasons": [reason] if reason else [],
    }


def lag_reason(lag_p99_ms: float | None, latency_p50_ms: float | None, max_lag_ms: float) -> str | None:
    """Why the send lag makes a rate void; None where it does not.

    A late send never flatters a latency, which counts from the due time, but it bunches the arrivals: that is another
    load. The limit is `max_lag_ms` or half of the median latency, whichever is less, so that at small latencies the
    generator does not measure itself. 2 ms are always allowed, since one time slice of another process takes as long.
    """
    if lag_p99_ms is None:
        return "nothing was sent"
    share = max_lag_ms if latency_p50_ms is None else latency_p50_ms / 2
    limit = min(max_lag_ms, max(MIN_LAG_LIMIT_MS, share))
    if lag_p99_ms <= limit:
        return None
    return f"the generator lagged: p99 of the send lag {lag_p99_ms:.1f} ms, limit {limit:.1f} ms"
