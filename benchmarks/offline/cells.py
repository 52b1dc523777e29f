"""One cell of the grid: two predict functions timed in pairs, and their distance from the exact answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.offline.memory import peak_rss_bytes, reset_peaks
from benchmarks.offline.pairs import measure_pairs
from benchmarks.percentiles import rounded
from serve.core import Matrix

Predict = Callable[[Matrix], Matrix]
"""Encoded rows float64 [rows, features] to outputs float64 [rows, outputs]."""

MIN_PAIRS = 3


@dataclass(frozen=True)
class Rounds:
    """How often a cell is repeated: `pairs` rounds, fewer if they take more than `cell_seconds`, at least three."""

    pairs: int = 7
    uncached_pairs: int = 3
    warmups: int = 2
    cell_seconds: float = 120.0

    def affordable(self, round_s: float) -> tuple[int, int]:
        """Warm-ups and pairs for rounds that take `round_s` each; a cell that is cut short warms up once."""
        rounds = int(self.cell_seconds / max(round_s, 1e-9))
        if rounds >= self.warmups + self.pairs:
            return self.warmups, self.pairs
        warmups = min(self.warmups, 1)
        return warmups, min(self.pairs, max(MIN_PAIRS, rounds - warmups))


def compare_cached(compiled: Predict, tabpfn: Predict, exact: Matrix, rows: Matrix, rounds: Rounds) -> dict[str, Any]:
    """Times of both functions in pairs, and the largest difference of each from the exact answer.

    Times are medians; a speed-up is the median of the pairs' ratios.
    """
    reset_peaks()
    started = time.perf_counter()
    answers = compiled(rows), tabpfn(rows)
    warmups, pairs = rounds.affordable(time.perf_counter() - started)
    times = measure_pairs(lambda: compiled(rows), lambda: tabpfn(rows), pairs, warmups=warmups)
    return {
        "rows": len(rows),
        "compiled_ms": rounded(times.first_median_ms),
        "tabpfn_ms": rounded(times.second_median_ms),
        "compiled_ms_per_row": rounded(times.first_median_ms / len(rows), 4),
        "tabpfn_ms_per_row": rounded(times.second_median_ms / len(rows), 4),
        "speedup": rounded(times.speedup),
        "max_abs_diff": _distance(answers[0], exact),
        "tabpfn_abs_diff": _distance(answers[1], exact),
        "pairs": pairs,
        "pairs_ms": {"compiled": list(map(rounded, times.first_ms)), "tabpfn": list(map(rounded, times.second_ms))},
        "peak_rss_bytes": peak_rss_bytes(),
    }


def compare_uncached(
    compiled: Predict, uncached: Predict, exact_uncached: Predict, rows: Matrix, pairs: int
) -> dict[str, Any]:
    """Times beside tabpfn's predict without a KV cache; the difference is from tabpfn's uncached float32 answer."""
    times = measure_pairs(lambda: compiled(rows), lambda: uncached(rows), pairs, warmups=1)
    return {
        "uncached_ms": rounded(times.second_median_ms),
        "uncached_ms_per_row": rounded(times.second_median_ms / len(rows), 4),
        "speedup_uncached": rounded(times.speedup),
        "max_abs_diff_uncached": _distance(compiled(rows), exact_uncached(rows)),
        "uncached_pairs": pairs,
        "uncached_pairs_ms": {
            "compiled": list(map(rounded, times.first_ms)),
            "uncached": list(map(rounded, times.second_ms)),
        },
    }


def _distance(answer: Matrix, exact: Matrix) -> float:
    return float(np.abs(answer - exact).max())
