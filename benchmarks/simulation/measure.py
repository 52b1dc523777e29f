"""Turns the ended requests of a run into its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.percentiles import rounded, samples_needed, summarise
from benchmarks.simulation.request import Outcome, Request
from serve.core import Priority

SIZES = (("1", 1, 1), ("2-10", 2, 10), ("11-100", 11, 100), ("over 100", 101, 10**9))
"""Classes of request sizes: (name, fewest rows, most rows)."""
FEW_FOR_P99 = samples_needed(99)


def jain(values: Sequence[float]) -> float | None:
    """Jain's index of fairness: 1 if all values are equal, 1/n if one has everything; None if all are 0."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def measure(requests: Sequence[Request], num_contexts: int, duration_s: float) -> dict[str, Any]:
    """Numbers of the requests that arrived within `duration_s`, whenever they ended.

    `latency` covers answers, late ones too, and expired requests, which waited until their deadline. Refused and failed
    requests are in no latency, but they lower the goodput.
    """
    count = len(requests)
    outcome = np.fromiter((-1 if r.outcome is None else r.outcome for r in requests), np.int8, count)
    arrived = np.fromiter((r.arrived_at for r in requests), float, count)
    ended = np.fromiter((r.ended_at for r in requests), float, count)
    deadline = np.fromiter((r.deadline for r in requests), float, count)
    rows = np.fromiter((r.num_rows for r in requests), np.int64, count)
    context = np.fromiter((r.context.index for r in requests), np.int64, count)
    bulk = np.fromiter((r.priority is Priority.BULK for r in requests), bool, count)
    latency_ms = 1e3 * (ended - arrived)
    waited = (outcome == Outcome.ANSWERED) | (outcome == Outcome.EXPIRED)
    good = (outcome == Outcome.ANSWERED) & (ended <= deadline)
    return {
        "offered": count,
        "offered_per_s": rounded(count / duration_s),
        "outcomes": {kind.name.lower(): int((outcome == kind).sum()) for kind in Outcome},
        "late": int(((outcome == Outcome.ANSWERED) & ~good).sum()),
        "lost": int((outcome == -1).sum()),
        "goodput_per_s": rounded(good.sum() / duration_s),
        "goodput_share": rounded(good.mean(), 4) if count else None,
        "goodput_rows_per_s": rounded(rows[good].sum() / duration_s),
        "latency": summarise(latency_ms[waited].tolist()),
        "interactive": _group(latency_ms, waited, good, ~bulk),
        **_details(latency_ms, waited, good, bulk, rows, duration_s),
        **({"fairness": _fairness(latency_ms, waited, good, context, num_contexts)} if num_contexts > 1 else {}),
    }


def _details(
    latency_ms: NDArray[np.float64],
    waited: NDArray[np.bool_],
    good: NDArray[np.bool_],
    bulk: NDArray[np.bool_],
    rows: NDArray[np.int64],
    duration_s: float,
) -> dict[str, Any]:
    """Numbers that only some loads have: of bulk requests, and of requests by size."""
    details: dict[str, Any] = {}
    if bulk.any():
        served = {"rows_per_s": rounded(rows[good & bulk].sum() / duration_s)}
        details["bulk"] = _group(latency_ms, waited, good, bulk) | served
    if rows.size and rows.min() < rows.max():
        by_rows = {name: (rows >= low) & (rows <= high) for name, low, high in SIZES}
        details["by_rows"] = {name: _group(latency_ms, waited, good, of) for name, of in by_rows.items() if of.any()}
    return details


def _group(
    latency_ms: NDArray[np.float64], waited: NDArray[np.bool_], good: NDArray[np.bool_], of: NDArray[np.bool_]
) -> dict[str, Any]:
    count = int(of.sum())
    summary = summarise(latency_ms[waited & of].tolist())
    kept = ("n", "p50_ms", "p90_ms", "p99_ms", "p99_reliable", "max_ms")
    return {
        "offered": count,
        "goodput_share": rounded(float(good[of].mean()), 4) if count else None,
        **{key: summary[key] for key in kept},
    }


def _fairness(
    latency_ms: NDArray[np.float64],
    waited: NDArray[np.bool_],
    good: NDArray[np.bool_],
    context: NDArray[np.int64],
    num_contexts: int,
) -> dict[str, Any]:
    """How evenly the requested contexts are served: share answered in time and latency, by context."""
    offered = np.bincount(context, minlength=num_contexts)
    served = np.bincount(context[good], minlength=num_contexts)
    asked = offered > 0
    shares = served[asked] / offered[asked]
    waits = np.bincount(context[waited], weights=latency_ms[waited], minlength=num_contexts)
    num_waits = np.bincount(context[waited], minlength=num_contexts)
    means = waits[num_waits > 0] / num_waits[num_waits > 0]
    p99 = [
        float(np.percentile(latency_ms[of], 99, method="inverted_cdf"))
        for index in np.flatnonzero(num_waits >= FEW_FOR_P99)
        if (of := waited & (context == index)).any()
    ]
    tail = context >= num_contexts // 2
    return {
        "contexts": int(asked.sum()),
        "jain_goodput": rounded(jain(shares.tolist()), 4),
        "min_max_goodput": rounded(float(shares.min() / shares.max()), 4) if shares.size and shares.max() else None,
        "jain_latency": rounded(jain(means.tolist()), 4),
        "head": _group(latency_ms, waited, good, context == 0),
        "tail": _group(latency_ms, waited, good, tail),
        "p99_ms_by_context": {
            "contexts": len(p99), "least": rounded(min(p99, default=None)), "most": rounded(max(p99, default=None))
        },
    }  # fmt: skip
