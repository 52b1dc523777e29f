"""One rate's exchanges -> the numbers that are reported, and whether they may be believed.

Latency is over the answers with status 200 and the requests that were given up (their wait so far, a lower bound): to
leave those out would hide the worst. Refusals (429) are fast and would flatter: they show in `by_status` and goodput.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.online.client import Exchange
from benchmarks.percentiles import rounded, summarise

MIN_LAG_LIMIT_MS = 2.0


def summarise_rate(
    exchanges: Sequence[Exchange], *, rate: float, duration_s: float, deadline_ms: float, max_lag_ms: float
) -> dict[str, Any]:
    """Every number of one rate except the correctness check; see README.md for their meaning."""
    answered = [exchange for exchange in exchanges if exchange.status]
    ok = [exchange for exchange in answered if exchange.status == 200]
    given_up = [exchange for exchange in exchanges if exchange.error == "timeout"]
    latency = summarise([exchange.latency_ms for exchange in (*ok, *given_up)])
    sent = [exchange for exchange in exchanges if exchange.is_sent]
    never_sent = [exchange for exchange in given_up if not exchange.is_sent]
    lag = summarise([*(each.send_lag_ms for each in sent), *(each.latency_ms for each in never_sent)])
    in_time = sum(exchange.latency_ms <= deadline_ms for exchange in ok)
    reason = lag_reason(lag["p99_ms"], latency["p50_ms"], max_lag_ms)
    return {
        "rate": rate,
        "scheduled": len(exchanges),
        "sent": len(sent),
        "answered": len(answered),
        "ok": len(ok),
        "by_status": dict(sorted(Counter(str(exchange.status) for exchange in answered).items())),
        "errors": dict(sorted(Counter(exchange.error for exchange in exchanges if exchange.error).items())),
        "latency": latency,
        "goodput_per_s": rounded(in_time / duration_s),
        "ok_per_s": rounded(len(ok) / duration_s),
        **_from_answers(ok),
        "send_lag": lag,
        "void": reason is not None,
        "void_reasons": [reason] if reason else [],
        "lagged": reason is not None,
    }


def lag_reason(lag_p99_ms: float | None, latency_p50_ms: float | None, max_lag_ms: float) -> str | None:
    """Why a rate is void by send lag, or None.

    A late send never flatters a latency (it counts from the due time) but bunches the arrivals, and is then a different
    load. At most half of the median latency, so that at small latencies the generator does not measure itself; never
    more than `max_lag_ms`; 2 ms is always allowed, since one time slice of another process takes as much.
    """
    if lag_p99_ms is None:
        return "nothing was sent"
    share = max_lag_ms if latency_p50_ms is None else latency_p50_ms / 2
    limit = min(max_lag_ms, max(MIN_LAG_LIMIT_MS, share))
    if lag_p99_ms <= limit:
        return None
    return f"the generator lagged: p99 of the send lag {lag_p99_ms:.1f} ms, limit {limit:.1f} ms"


def _from_answers(ok: Sequence[Exchange]) -> dict[str, Any]:
    """What the answers tell of their batch and time, as means; None where there were none."""
    answers = [json.loads(exchange.body) for exchange in ok]
    latencies = [exchange.latency_ms for exchange in ok]
    timings = [answer["timing_ms"] for answer in answers]
    own_rows = np.array([len(answer["predictions"]) for answer in answers], dtype=float)
    batch_rows = np.array([answer["batch_rows"] for answer in answers], dtype=float)
    return {
        "batch_rows": _batch_rows(own_rows, batch_rows),
        "server_ms": {
            "queue": _mean([timing["queue"] for timing in timings]),
            "compute": _mean([timing["compute"] for timing in timings]),
            "total": _mean([timing["total"] for timing in timings]),
            "overhead": _mean([_overhead(timing) for timing in timings]),
        },
        "outside_ms": _mean([took - timing["total"] for took, timing in zip(latencies, timings, strict=True)]),
    }


def _batch_rows(own_rows: np.ndarray[Any, Any], batch_rows: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """`per_row`, `per_request`: the batch that a row, a request found itself in. `per_batch`: rows over batches.

    A large batch is met by many, so the first two are above the plain mean of batches; the last is that mean, each
    request standing for its share (own rows / batch rows) of one batch. It is exact where only this load was served.
    """
    if not len(own_rows):
        return {"per_row": None, "per_request": None, "per_batch": None, "max": None}
    return {
        "per_row": rounded(float((own_rows * batch_rows).sum() / own_rows.sum())),
        "per_request": rounded(float(batch_rows.mean())),
        "per_batch": rounded(float(own_rows.sum() / (own_rows / batch_rows).sum())),
        "max": float(batch_rows.max()),
    }


def _overhead(timing: Mapping[str, float]) -> float:
    """In the server but neither queued nor computed: reading, encoding, writing."""
    return timing["total"] - timing["queue"] - timing["compute"]


def _mean(values: Sequence[float]) -> float | None:
    return rounded(float(np.mean(values))) if values else None
