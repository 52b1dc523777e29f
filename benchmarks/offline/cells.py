"""One context, our engine and the library beside each other: who is fitted, who is compared with whom.

Three of the library take part, and each is built in its own way, because keys and values that were computed in bfloat16
are other keys and values than those computed in float32:
- `default`, its cached predict in the precision that it picks itself: what is timed against ours;
- `exact`, its cached predict in float32: what both answers are held against. It is not timed. Ours is made from the
  same float32 cache, built once and lent to each of our engines, since building one takes minutes at full size;
- `uncached`, without a KV cache: slow, so for the demo model only.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from benchmarks.offline.memory import peak_rss_bytes, reset_peaks, tensor_bytes
from benchmarks.offline.pairs import measure_pairs
from benchmarks.percentiles import rounded
from serve.core import Batch, Matrix, ModelDefinition
from serve.engine import library
from serve.engine.engine import TabPFNEngine
from serve.engine.library import Estimator, FitMode
from serve.engine.row_encoder import RowEncoder
from serve.settings import EngineSettings

Predict = Callable[[Matrix], Matrix]
Queries = Mapping[int, Matrix]
"""Query rows by their number."""

MIN_PAIRS = 3


@dataclass(frozen=True)
class Case:
    """One context to be measured. Its answers are compared raw, so it states no class priors.

    Attributes:
        arch: as on the command line: `demo`, or a key of `ARCHITECTURES`.
        is_compared_uncached: measure the library without its KV cache as well.
    """

    name: str
    arch: str
    definition: ModelDefinition
    is_compared_uncached: bool = False


@dataclass(frozen=True)
class Rounds:
    """How often a cell is repeated: `pairs` rounds, but no more than fit into `cell_seconds`, and at least three."""

    pairs: int = 7
    uncached_pairs: int = 3
    warmups: int = 2
    cell_seconds: float = 120.0

    def affordable(self, round_s: float) -> tuple[int, int]:
        """Warm-ups and pairs for rounds that take this long; a cell that is cut short warms up once."""
        rounds = int(self.cell_seconds / max(round_s, 1e-9))
        if rounds >= self.warmups + self.pairs:
            return self.warmups, self.pairs
        warmups = min(self.warmups, 1)
        return warmups, min(self.pairs, max(MIN_PAIRS, rounds - warmups))


class LibrarySide:
    """The library's estimators of one case on one device, for rows that are encoded already."""

    def __init__(self, case: Case, device: str) -> None:
        self._definition, self.device = case.definition, device
        context = case.definition.context
        names = [column.name for column in context.columns]
        records = [{name: context.cells[name][row] for name in names} for row in range(context.num_rows)]
        self._frame = library.context_frame(case.definition, RowEncoder(context.columns).read_records(records))
        fitted, self.fit_s = self._fit("fit_with_cache", "auto")
        self.context_rows = library.clean(fitted, self._frame)
        self.default = library.on_matrices(fitted)
        self._exact: Estimator = fitted
        self.was_borrowed = False
        self.exact_fit_s = self.fit_s
        if self.is_reduced:
            self._exact, self.exact_fit_s = self._fit("fit_with_cache", "float32")
        self.exact_kv_cache_bytes = kv_cache_bytes(self._exact)

    @property
    def is_reduced(self) -> bool:
        """Whether the library's own choice of precision, here, is less than float32."""
        return bool(self.default.use_autocast_)

    def _fit(self, fit_mode: FitMode, precision: str) -> tuple[Estimator, float]:
        """A fitted estimator, and the seconds that it took."""
        progress(f"{self._definition.name}: building the library's {fit_mode}, {precision}, on {self.device}")
        started = time.perf_counter()
        fitted = library.build_estimator(self._definition, self._frame, fit_mode, self.device, precision)
        return fitted, time.perf_counter() - started

    def predict(self, rows: Matrix) -> Matrix:
        """In the library's default precision."""
        return library.predict_outputs(self.default, rows)

    def exact_answers(self, queries: Queries) -> dict[int, Matrix]:
        estimator = library.on_matrices(self._exact)
        return {num_rows: library.predict_outputs(estimator, rows) for num_rows, rows in queries.items()}

    def uncached(self, precision: str) -> Predict:
        estimator = library.on_matrices(self._fit("fit_preprocessors", precision)[0])
        return lambda rows: library.predict_outputs(estimator, rows)

    @contextmanager
    def lent(self, *, is_last: bool) -> Iterator[None]:
        """Our engine, when it fits this case in here, is given the float32 cache that `exact` has, not another one.

        Args:
            is_last: nobody asks again: the caches are the borrower's alone, to drop when it has read them.
        """
        fitted = self._exact
        if is_last:
            self._exact = None
        build = library.build_estimator
        loan = (self._definition, "fit_with_cache", self.device, "float32")

        def lend(
            definition: ModelDefinition, frame: pd.DataFrame, fit_mode: FitMode, device: str, precision: str
        ) -> Estimator:
            if (definition, fit_mode, device, precision) != loan:
                return build(definition, frame, fit_mode, device, precision)
            self.was_borrowed = True
            borrowed = copy.copy(fitted)
            borrowed.executor_ = copy.copy(fitted.executor_)  # whose caches the borrower may drop, as its own
            return borrowed

        with patch.object(library, "build_estimator", lend):
            yield


class OurSide:
    """Our engine with one fitted context, in one precision."""

    def __init__(self, engine: TabPFNEngine, settings: EngineSettings, definition: ModelDefinition) -> None:
        self._engine, self._settings = engine, settings
        progress(f"{definition.name}: fitting {settings.backend}, {settings.inference_precision}")
        started = time.perf_counter()
        self._fitted = engine.fit(definition)
        self.fit_s = time.perf_counter() - started

    def predict(self, rows: Matrix) -> Matrix:
        return self._engine.predict(Batch(self._fitted, rows))

    def facts(self, side: LibrarySide) -> dict[str, Any]:
        """What stands in each of its cells. Bytes that the engine does not tell are those of the library's float32."""
        settings, fitted = self._settings, self._fitted
        return {
            "device": settings.device,
            "precision": settings.inference_precision,
            "backend": getattr(fitted, "backend", "tabpfn"),
            "threads": settings.num_threads,
            "weights_bytes": getattr(fitted, "weights_bytes", weights_bytes(side.default)),
            "kv_cache_bytes": getattr(fitted, "kv_cache_bytes", side.exact_kv_cache_bytes),
            "library_kv_cache_bytes": kv_cache_bytes(side.default),
        }


def kv_cache_bytes(estimator: Estimator) -> int:
    return tensor_bytes(estimator.executor_.kv_caches)


def weights_bytes(estimator: Estimator) -> int:
    return tensor_bytes([network.state_dict() for network in estimator.models_])


def mix_rows(context_rows: Matrix, num_rows: int, seed: int) -> Matrix:
    """Query rows that are not the context's: each cell is drawn from its column of the context."""
    picked = np.random.default_rng(seed).integers(len(context_rows), size=(num_rows, context_rows.shape[1]))
    return np.take_along_axis(context_rows, picked, axis=0)


def case_facts(case: Case, side: LibrarySide) -> dict[str, Any]:
    """What is the same in every cell of a case: what the library made of the context."""
    estimator, definition = side.default, case.definition
    members = estimator.executor_.ensemble_members
    return {
        "arch": case.arch,
        "version": definition.version,
        "checkpoint": definition.checkpoint_name,
        "task": str(definition.context.task),
        "context_rows": len(side.context_rows),
        "features": side.context_rows.shape[1],
        "outputs": side.predict(side.context_rows[:1]).shape[1],
        "members": len(members),
        "widths": [int(member.transform_X_test(side.context_rows[:1]).shape[1]) for member in members],
        "cache_groups": len(estimator.executor_.cache_groups),
        "presets": [
            f"{preset.name}, {preset.categorical_name}, {preset.global_transformer_name or 'no svd'}"
            for preset in estimator.inference_config_.PREPROCESS_TRANSFORMS
        ],
        "fingerprint": estimator.inference_config_.FINGERPRINT_FEATURE,
        "parameters": sum(parameter.numel() for network in estimator.models_ for parameter in network.parameters()),
        "library_fit_s": rounded(side.fit_s),
        "library_float32_fit_s": rounded(side.exact_fit_s),
        "library_is_reduced": side.is_reduced,
    }


def compare_cached(ours: Predict, default: Predict, exact: Matrix, rows: Matrix, rounds: Rounds) -> dict[str, Any]:
    """Times of both predicts in pairs, and how far each is from the exact answer.

    Times are medians; a speed-up is the median of the pairs' ratios.
    """
    reset_peaks()
    started = time.perf_counter()
    answers = ours(rows), default(rows)
    warmups, pairs = rounds.affordable(time.perf_counter() - started)
    times = measure_pairs(lambda: ours(rows), lambda: default(rows), pairs, warmups=warmups)
    return {
        "rows": len(rows),
        "ours_ms": rounded(times.first_median_ms),
        "library_ms": rounded(times.second_median_ms),
        "ours_ms_per_row": rounded(times.first_median_ms / len(rows), 4),
        "library_ms_per_row": rounded(times.second_median_ms / len(rows), 4),
        "speedup": rounded(times.speedup),
        "max_abs_diff": _distance(answers[0], exact),
        "library_abs_diff": _distance(answers[1], exact),
        "pairs": pairs,
        "pairs_ms": {"ours": list(map(rounded, times.first_ms)), "library": list(map(rounded, times.second_ms))},
        "peak_rss_bytes": peak_rss_bytes(),
    }


def compare_uncached(
    ours: Predict, uncached: Predict, exact_uncached: Predict, rows: Matrix, pairs: int
) -> dict[str, Any]:
    """Ours beside the library's predict without a KV cache; the difference is from its float32 answer."""
    times = measure_pairs(lambda: ours(rows), lambda: uncached(rows), pairs, warmups=1)
    return {
        "uncached_ms": rounded(times.second_median_ms),
        "uncached_ms_per_row": rounded(times.second_median_ms / len(rows), 4),
        "speedup_uncached": rounded(times.speedup),
        "max_abs_diff_uncached": _distance(ours(rows), exact_uncached(rows)),
        "uncached_pairs": pairs,
        "uncached_pairs_ms": {
            "ours": list(map(rounded, times.first_ms)),
            "uncached": list(map(rounded, times.second_ms)),
        },
    }


def _distance(answer: Matrix, exact: Matrix) -> float:
    return float(np.abs(answer - exact).max())


def progress(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
