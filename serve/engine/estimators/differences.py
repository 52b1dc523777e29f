"""What an import says of columns in which tabpfn answers otherwise without its KV cache than with it.

The server answers with the cache, always. An estimator that was fitted without it (tabpfn's default) may so answer
some rows otherwise than the server does; `checks/modes.py` says why. The note names the columns, and measures.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Mapping

import numpy as np

from serve.core import Matrix
from serve.engine import tabpfn_estimators
from serve.engine.checks import modes
from serve.engine.checks.parity import largest_difference
from serve.engine.estimators import caches as estimator_caches
from serve.engine.estimators.plausible import REFUSALS
from serve.engine.estimators.schema import EstimatorSchema
from serve.engine.tabpfn_estimators import Estimator

_MAX_NAMED = 8
_PROBES_EACH = 3
_SMALLEST = 1e-6
"""Differences up to this are rounding."""
_MAX_OPERATIONS = 1e12
"""Of one pass through the context; beyond this a pass may take minutes on one core, and nothing is measured."""
_MAX_SECONDS = 60.0
"""After this no further probe is measured: each takes a pass through the context. An import has 15 minutes."""


def describe_differences(estimator: Estimator, schema: EstimatorSchema) -> list[str]:
    """One line for the operator where there are such columns, else none.

    Args:
        estimator: of the schema, and on the CPU. It is set to compute as the server does.
    """
    if estimator_caches.has_caches(estimator):
        return []
    estimator_caches.prepare(estimator, "cpu", "float32")
    base, probes, columns = schema.probes()
    found = modes.columns_that_differ(estimator, base, probes, columns)
    if not found:
        return []
    measured = _measure(estimator, {position: probes[columns == position] for position in found[:_MAX_NAMED]})
    # whether two layouts are in use depends on more than the columns, so a measurement decides
    found = [position for position in found if measured.get(position, 1.0) > _SMALLEST]
    if not found:
        return []
    named = found[:_MAX_NAMED]
    parts = [_name(schema.columns[position].name, measured.get(position)) for position in named]
    if len(found) > _MAX_NAMED:
        parts.append(f"{len(found) - _MAX_NAMED} more")
    of = "a probability" if hasattr(estimator, "classes_") else "an answer, in shares of the largest one"
    how = f"Measured on probe rows, as a difference of {of}." if measured else "The context is too large to measure it."
    return [
        f"This file was fitted without a KV cache (fit_mode={estimator.fit_mode!r}), and the server answers with one. "
        "tabpfn's own answers differ between the two because of columns that hold one value, or nearly one, in the "
        f"prepared context: {', '.join(parts)}. {how}"
    ]


def _name(column: str, difference: float | None) -> str:
    return repr(column) if difference is None else f"{column!r} (by up to {difference:.2g})"


def _measure(estimator: Estimator, probes: Mapping[int, Matrix]) -> dict[int, float]:
    """The largest difference of tabpfn's two modes on each column's probes, each row alone, as far as time permits."""
    if _operations(estimator) > _MAX_OPERATIONS:
        return {}
    deadline = time.monotonic() + _MAX_SECONDS
    cached = copy.copy(estimator)
    estimator_caches.build_caches(cached)
    measured: dict[int, float] = {}
    for turn in range(_PROBES_EACH):
        for position, rows in probes.items():
            if turn < len(rows) and time.monotonic() < deadline:
                row = rows[len(rows) - 1 - turn : len(rows) - turn]
                with contextlib.suppress(*REFUSALS), np.errstate(all="ignore"):  # a new number may be out of range
                    measured[position] = max(measured.get(position, 0.0), _difference(estimator, cached, row))
    return measured


def _operations(estimator: Estimator) -> float:
    """Multiplications of a pass of all members through the context, roughly: every parameter once for each cell."""
    parameters = sum(parameter.numel() for parameter in estimator.models_[0].parameters())
    cells = estimator.n_train_samples_ * estimator.inferred_feature_schema_.num_columns
    return float(parameters * cells * estimator.n_estimators_)


def _difference(one: Estimator, other: Estimator, row: Matrix) -> float:
    """How far two estimators' answers to one row differ."""
    answers, others = (tabpfn_estimators.predict_outputs(tabpfn_estimators.on_matrices(of), row) for of in (one, other))
    return largest_difference(answers, others, is_probability=hasattr(one, "classes_"))
