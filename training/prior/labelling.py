"""Step 3 of the prior: turns scores into classes."""

from __future__ import annotations

import numpy as np

from training.prior.draws import Floats, Ints, Rng, f32, normal, standardise


def label(rng: Rng, scores: Floats, num_classes: int) -> Ints:
    """Labels int64 [rows] in `0..num_classes - 1`, with noise and in permuted order.

    Args:
        scores: [rows, 1], cut into ordered classes, or [rows, classes], of which the largest wins.
    """
    scores = standardise(scores)
    if rng.random() < 0.75:
        scores = scores + normal(rng, *scores.shape) * rng.lognormal(-1.2, 0.9)
    if scores.shape[1] == 1:
        labels = np.searchsorted(_cuts(rng, scores[:, 0], num_classes), scores[:, 0])
    else:
        labels = (scores + normal(rng, 1, num_classes) * rng.uniform(0, 0.7)).argmax(axis=1)
    return rng.permutation(num_classes)[labels].astype(np.int64)


def _cuts(rng: Rng, scores: Floats, num_classes: int) -> Floats:
    if num_classes == 2:
        imbalanced = rng.random() < 0.4
        quantiles = np.array([1 - rng.uniform(0.02, 0.3) if imbalanced else rng.uniform(0.3, 0.7)])
    else:
        quantiles = np.cumsum(rng.dirichlet(np.full(num_classes, 4.0)))[:-1]
    return f32(np.quantile(scores, quantiles))
