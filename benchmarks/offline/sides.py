"""The two sides of a comparison on one context: tabpfn's estimators, and the server's engine.

Keys and values computed in bfloat16 differ from those computed in float32, so tabpfn is fitted up to three times:
- `default`: its cached predict in the precision that tabpfn picks itself. This is timed against the server's engine.
- `exact`: its cached predict in float32. Both answers are compared with it; it is not timed. Its KV cache is built once
  and lent to every engine under test, because building one takes minutes at full size.
- `uncached`: without a KV cache. This is slow, so only the demo model is compared with it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from benchmarks.offline.cells import Predict
from benchmarks.offline.memory import tensor_bytes
from benchmarks.percentiles import rounded
from serve.core import Batch, Matrix, ModelDefinition, QueryTable
from serve.engine import cleaning, tabpfn_estimators
from serve.engine.engine import TabPFNEngine
from serve.engine.row_encoder import RowEncoder
from serve.engine.tabpfn_estimators import Estimator, FitMode
from serve.settings import EngineSettings

Queries = Mapping[int, Matrix]
"""Query rows, by their number."""
Say = Callable[[str], None]
"""Prints a line of progress."""


@dataclass(frozen=True)
class Case:
    """One context to measure. It states no class priors, because raw answers are compared.

    Attributes:
        arch: as on the command line: `demo`, or a key of `ARCHITECTURES`.
        is_compared_uncached: also measure tabpfn without its KV cache.
    """

    name: str
    arch: str
    definition: ModelDefinition
    is_compared_uncached: bool = False


class TabPFNSide:
    """tabpfn's estimators of one case on one device. They take rows that are encoded already."""

    def __init__(self, case: Case, device: str, say: Say = lambda _: None) -> None:
        self._definition, self.device, self._say = case.definition, device, say
        context = case.definition.context
        raw = RowEncoder(context.columns).read(QueryTable.from_columns(dict(context.cells)))
        self._frame = cleaning.context_frame(case.definition, raw)
        fitted, self.fit_s = self._fit("fit_with_cache", "auto")
        self.context_rows = cleaning.clean(fitted, self._frame)
        self.default = tabpfn_estimators.on_matrices(fitted)
        self._exact: Estimator = fitted
        self.was_borrowed = False
        self.exact_fit_s = self.fit_s
        if self.is_reduced:
            self._exact, self.exact_fit_s = self._fit("fit_with_cache", "float32")
        self.exact_kv_cache_bytes = kv_cache_bytes(self._exact)

    @property
    def is_reduced(self) -> bool:
        """Whether tabpfn picks less than float32 on this device."""
        return bool(self.default.use_autocast_)

    def _fit(self, fit_mode: FitMode, precision: str) -> tuple[Estimator, float]:
        """A fitted estimator, and the seconds that the fit took."""
        self._say(f"{self._definition.name}: fitting tabpfn, {fit_mode}, {precision}, on {self.device}")
        started = time.perf_counter()
        fitted = tabpfn_estimators.build_estimator(self._definition, self._frame, fit_mode, self.device, precision)
        return fitted, time.perf_counter() - started

    def predict(self, rows: Matrix) -> Matrix:
        """tabpfn's cached answer in its own choice of precision."""
        return tabpfn_estimators.predict_outputs(self.default, rows)

    def exact_answers(self, queries: Queries) -> dict[int, Matrix]:
        """tabpfn's cached float32 answers to each row alone: in a batch its fingerprints may change."""
        estimator = tabpfn_estimators.on_matrices(self._exact)
        return {num_rows: tabpfn_estimators.predict_each_alone(estimator, rows) for num_rows, rows in queries.items()}

    def uncached(self, precision: str) -> Predict:
        """tabpfn's predict without a KV cache."""
        estimator = tabpfn_estimators.on_matrices(self._fit("fit_preprocessors", precision)[0])
        return lambda rows: tabpfn_estimators.predict_outputs(estimator, rows)

    @contextmanager
    def lent(self, *, is_last: bool) -> Iterator[None]:
        """An engine that fits this case inside the block gets the float32 KV cache of `exact` instead of building one.

        Args:
            is_last: no other engine follows, so this side gives up its own reference: the engine can free the caches.
        """
        fitted = self._exact
        if is_last:
            self._exact = None
        build = tabpfn_estimators.build_estimator
        loan = (self._definition, "fit_with_cache", self.device, "float32")

        def lend(
            definition: ModelDefinition, frame: pd.DataFrame, fit_mode: FitMode, device: str, precision: str
        ) -> Estimator:
            if (definition, fit_mode, device, precision) != loan:
                return build(definition, frame, fit_mode, device, precision)
            self.was_borrowed = True
            borrowed = copy.copy(fitted)
            borrowed.executor_ = copy.copy(fitted.executor_)  # the engine may drop the copy's caches, not these
            return borrowed

        with patch.object(tabpfn_estimators, "build_estimator", lend):
            yield


class EngineSide:
    """The server's engine with one fitted context, one backend and one precision."""

    def __init__(
        self,
        engine: TabPFNEngine,
        settings: EngineSettings,
        definition: ModelDefinition,
        say: Say = lambda _: None,
    ) -> None:
        self._engine, self._settings = engine, settings
        say(f"{definition.name}: fitting the engine, {settings.backend}, {settings.chosen_precision}")
        started = time.perf_counter()
        self._fitted = engine.fit(definition)
        self.fit_s = time.perf_counter() - started

    def predict(self, rows: Matrix) -> Matrix:
        """As in serving: rows are padded to their row bucket."""
        return self._engine.predict(Batch(self._fitted, rows))

    def facts(self) -> dict[str, Any]:
        """What every cell of this side states."""
        return {
            "device": self._settings.device,
            "precision": self._settings.chosen_precision,
            "backend": self._fitted.backend,
            "threads": self._settings.num_threads,
        }


def kv_cache_bytes(estimator: Estimator) -> int:
    """Bytes of the KV caches of an estimator that was fitted with them."""
    return tensor_bytes(estimator.executor_.kv_caches)


def weights_bytes(estimator: Estimator) -> int:
    """Bytes of the networks' weights."""
    return tensor_bytes([network.state_dict() for network in estimator.models_])


def mix_rows(context_rows: Matrix, num_rows: int, seed: int) -> Matrix:
    """Query rows that are not rows of the context: each cell is drawn from its column of the context."""
    picked = np.random.default_rng(seed).integers(len(context_rows), size=(num_rows, context_rows.shape[1]))
    return np.take_along_axis(context_rows, picked, axis=0)


def case_facts(case: Case, side: TabPFNSide) -> dict[str, Any]:
    """What all cells of a case share: the context as tabpfn fitted it.

    Bytes are tabpfn's alone. Those of the compiled backend are not measured: its packed weights hide their size.
    """
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
        "tabpfn_fit_s": rounded(side.fit_s),
        "tabpfn_float32_fit_s": rounded(side.exact_fit_s),
        "tabpfn_is_reduced": side.is_reduced,
        "tabpfn_weights_bytes": weights_bytes(estimator),
        "tabpfn_kv_cache_bytes": kv_cache_bytes(estimator),
        "tabpfn_float32_kv_cache_bytes": side.exact_kv_cache_bytes,
    }
