"""The canary check: a row's answer is the same alone, among other rows, and by tabpfn without a KV cache.

It runs when a model is loaded, on rows of the model's context with some cells emptied. tabpfn's cached path has been
wrong before without an error (docs/decisions), so a difference beyond the tolerance fails the start.
"""

from __future__ import annotations

import numpy as np

from serve.core import Batch, Engine, FittedContext, Matrix
from serve.core.errors import StartupError

NUM_CANARIES = 8
SLACK_SHARE = 0.3
"""Of the tolerance: how small a share of a regressor's distribution may move. A quantile that lies beside nearly empty
bars moves far with it, in tabpfn alike (docs/models.md)."""


def canary_rows(context_rows: Matrix, seed: int = 0) -> Matrix:
    """`NUM_CANARIES` rows spread over the context, half of them with missing cells: float64 [rows, features]."""
    rng = np.random.default_rng(seed)
    rows: Matrix = context_rows[np.linspace(0, len(context_rows) - 1, NUM_CANARIES).astype(int)].copy()
    hidden = rng.random(rows.shape) < 0.1
    hidden[: NUM_CANARIES // 2] = False
    rows[hidden] = np.nan
    return rows


def check_parity(engine: Engine, context: FittedContext, rows: Matrix, tolerance: float) -> float:
    """Compare batched answers with answers alone, in another order, and without a KV cache.

    Returns:
        The largest difference, as `compare_answers` measures it.

    Raises:
        StartupError: a difference exceeds `tolerance`; names the two ways of answering.
    """
    together = engine.predict(Batch(context, rows))
    shuffled = np.random.default_rng(1).permutation(len(rows))
    ways = {
        "alone": np.concatenate([engine.predict(Batch(context, rows[i : i + 1])) for i in range(len(rows))]),
        "shuffled": engine.predict(Batch(context, rows[shuffled]))[np.argsort(shuffled)],
        "uncached": engine.reference(Batch(context, rows)),
    }
    return max(
        compare_answers(
            "batched",
            together,
            way,
            answer,
            tolerance,
            is_probability=bool(context.classes),
            slack=context.canary_slack,
        )
        for way, answer in ways.items()
    )


def compare_answers(
    one_way: str,
    one: Matrix,
    other_way: str,
    other: Matrix,
    tolerance: float,
    *,
    is_probability: bool,
    slack: Matrix | None = None,
) -> float:
    """As `largest_difference`.

    Args:
        one_way, other_way: how the answers were made, for the message.

    Raises:
        StartupError: the difference exceeds `tolerance`, or an answer is not a number.
    """
    difference = largest_difference(one, other, is_probability=is_probability, slack=slack)
    if not difference <= tolerance:  # also catches NaN
        raise StartupError(
            f"parity check failed: canary rows answered {one_way} and {other_way} differ by {difference:.3g}, "
            f"more than engine.parity_tolerance {tolerance:.3g}. In float32 this is a fault: a larger tolerance would "
            "hide it, so report it instead; docs/settings.md says what 16-bit formats need"
        )
    return difference


def largest_difference(one: Matrix, other: Matrix, *, is_probability: bool, slack: Matrix | None = None) -> float:
    """The largest difference between two answers to the same rows, float64 [rows, outputs] each.

    Probabilities are compared as they are; a regressor's answers relative to the largest of `one`.

    Args:
        slack: how far each answer may differ beside that, float64 [rows or fewer, outputs], for the rows in turn; see
            `FittedContext.canary_slack`.
    """
    scale = 1.0 if is_probability else max(1e-30, float(np.abs(one).max()))
    differences = np.abs(one - other)
    if slack is not None:
        differences = np.maximum(differences - np.resize(slack, differences.shape), 0)  # keeps NaN
    return float(differences.max()) / scale
