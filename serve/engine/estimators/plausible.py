"""Plausible numbers of a fitted estimator's columns, for its example and for the rows of the start-up checks.

The rows that the estimator was fitted on are gone or out of reach. What is always true here: the fitted preprocessing
takes every number that comes out. Some recipes (kernel density transforms) fail on numbers far from their context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.core import Matrix
from serve.engine.tabpfn_estimators import Estimator

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of a column's total movement at which numbers are taken; see `plausible_numbers`."""
_DIGITS = (1, 1.5, 2, 3, 5, 7)
_STEPS_OF_A_DECADE = len(_DIGITS)
_STEPS = np.array([float(f"{digit}e{power}") for power in range(-4, 8) for digit in _DIGITS])
_FAR_STEPS = np.array([float(f"{digit}e{power}") for power in range(-37, 38) for digit in (1, 3)])
_CANDIDATES = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])
_FAR_CANDIDATES = np.concatenate([-_FAR_STEPS[::-1], [0.0], _FAR_STEPS])
"""For columns of a very small or a very large scale: nearly all of float32's range."""
_PASSED_THROUGH = 1e4
"""Prepared values beyond this were not scaled, so they do not show where the context's numbers lay."""
REFUSALS = (ValueError, ArithmeticError)
"""What tabpfn's and scikit-learn's transforms raise for a number that they cannot take."""


def plausible_numbers(estimator: Estimator, position: int, num_columns: int) -> list[float]:
    """Numbers of a column, between which the fitted preprocessing distinguishes.

    An estimator that kept its cleaned rows gives their quantiles. Otherwise a series of candidate numbers passes
    through the members' pipelines, and those are taken at which the prepared values move.

    Args:
        position: the column, of `num_columns`.
    """
    kept = getattr(estimator.executor_, "X_train", None)
    if kept is not None:
        return _quantiles(np.asarray(kept[:, position], dtype=np.float64))
    # members of one recipe give nearly the same result
    members = {member.config.preprocess_config.name: member for member in estimator.executor_.ensemble_members}
    found: list[float] = []
    for candidates in (_CANDIDATES, _FAR_CANDIDATES):
        numbers = _moving_numbers(list(members.values()), candidates, position, num_columns)
        if len(set(numbers)) > len(set(found)):
            found = numbers
        # two numbers may be the candidates around zero, between which a small scale lies
        if len(set(found)) > 2:
            break
    return found or [0.0, 1.0]


def only_taken(estimator: Estimator, values: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each column's encoded values without those that a member refuses; a column that keeps none gets NaN.

    An estimator that kept its rows has no fitted members to ask, and its values lie among those of its rows.
    """
    members = getattr(estimator.executor_, "ensemble_members", None) or []
    longest = max(len(cells) for cells in values)
    together = np.array([[cells[row % len(cells)] for cells in values] for row in range(longest)])
    members = [member for member in members if not takes(member, together).all()]
    taken = []
    for position, cells in enumerate(values):
        rows = np.full((len(cells), len(values)), math.nan)
        rows[:, position] = cells
        fine = np.all([takes(member, rows) for member in members], axis=0) if members else np.ones(len(cells), bool)
        taken.append([cell for cell, is_fine in zip(cells, fine, strict=True) if is_fine] or [math.nan])
    return taken


def takes(member: Any, rows: Matrix) -> NDArray[np.bool_]:
    """Which rows an ensemble member can prepare: bool [rows]."""
    return _prepare_taken(member, rows)[0]


def _prepare_taken(member: Any, rows: Matrix, smallest: int = 1) -> tuple[NDArray[np.bool_], list[Matrix]]:
    """Which rows the member can prepare, and these rows prepared, in parts.

    A refused row fails the call that it is in, so such a call is halved, down to the smallest number of rows; these
    then count as refused.
    """
    try:
        with np.errstate(all="ignore"):  # of numbers that overflow, before they are refused
            return np.ones(len(rows), bool), [np.asarray(member.transform_X_test(rows), dtype=np.float64)]
    except REFUSALS:
        if len(rows) <= smallest:
            return np.zeros(len(rows), bool), []
    half = len(rows) // 2
    one, prepared = _prepare_taken(member, rows[:half], smallest)
    other, more = _prepare_taken(member, rows[half:], smallest)
    return np.concatenate([one, other]), prepared + more


def _quantiles(column: Matrix) -> list[float]:
    """Quantiles of the finite cells, rounded so that they are no cells of a row, and yet differ.

    Three digits count, and more where the cells are closer to each other than that (1e9 and 1e9 + 1e-5).
    """
    column = column[np.isfinite(column)]
    if not len(column):
        return [0.0]
    values = [float(value) for value in np.quantile(column, _SHARES)]
    sizes = [size for size in (values[-1] - values[0],) if 0 < size < math.inf]
    return [_round_to_size(value, min([*sizes, abs(value)])) for value in values]


def _round_to_size(value: float, size: float) -> float:
    """The value with three digits of the size."""
    return round(value, 2 - math.floor(math.log10(size))) if size else 0.0


def _moving_numbers(members: Sequence[Any], candidates: Matrix, position: int, num_columns: int) -> list[float]:
    """The candidates at which the members' prepared values move; empty where nothing moves."""
    rows = np.full((len(candidates), num_columns), math.nan)
    rows[:, position] = candidates
    prepared = [_prepare_taken(member, rows, _STEPS_OF_A_DECADE) for member in members]
    taken = np.all([fine for fine, _ in prepared], axis=0)
    moved = np.zeros(max(0, int(taken.sum()) - 1))
    for fine, parts in prepared:
        if len(moved):
            moved += _movement(np.concatenate(parts)[taken[fine]])
    if not moved.any():
        return []
    shares = np.cumsum(moved) / moved.sum()
    return [float(candidates[taken][1 + np.searchsorted(shares, share)]) for share in _SHARES]


def _movement(prepared: Matrix) -> Matrix:
    """How far each step between candidates moves the prepared columns: float64 [candidates - 1].

    Columns that move back and forth (fingerprints) or were not scaled do not count.
    """
    finite = np.nan_to_num(prepared, nan=0.0, posinf=0.0, neginf=0.0)
    steps = np.diff(np.arctan(finite), axis=0)
    net, total = np.abs(steps.sum(axis=0)), np.abs(steps).sum(axis=0)
    counts = (net > 0.9 * total) & (np.abs(finite).max(axis=0) < _PASSED_THROUGH)
    return np.asarray(np.abs(steps[:, counts]).sum(axis=1), dtype=np.float64)
