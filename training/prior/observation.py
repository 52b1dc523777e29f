"""Step 2 of the prior: spoils features as measurements do."""

from __future__ import annotations

import numpy as np

from training.prior.draws import Floats, Rng, f32, latents, standardise


def draw_num_irrelevant(rng: Rng, num_features: int) -> int:
    """The number of columns that say nothing about the label: often 0, at most half of them."""
    return int(rng.integers(0, num_features // 2 + 1)) if rng.random() < 0.4 else 0


def add_irrelevant(rng: Rng, features: Floats, num_features: int) -> Floats:
    """Features [rows, num_features] in random order, filled up with irrelevant columns."""
    missing = num_features - features.shape[1]
    if missing > 0:
        features = np.concatenate([features, latents(rng, len(features), missing)], axis=1)
    return features[:, rng.permutation(num_features)]


def observe(rng: Rng, features: Floats) -> Floats:
    """Features [rows, features] after warps, discretisation and missing cells."""
    features = standardise(features)
    warp_rate, category_rate = rng.choice([0.0, 0.3, 0.8]), rng.choice([0.0, 0.0, 0.2, 0.5])
    for column in range(features.shape[1]):
        kind = rng.random()
        if kind < category_rate:
            features[:, column] = _discretise(rng, features[:, column])
        elif kind < category_rate + (1 - category_rate) * warp_rate:
            features[:, column] = _warp(rng, features[:, column])
    if rng.random() < 0.3:
        features = _hide_cells(rng, features)
    return features


def _warp(rng: Rng, values: Floats) -> Floats:
    """A monotone warp: the effect of units, logarithms and saturating sensors."""
    choice = rng.integers(0, 6)
    if choice == 0:
        return f32(np.exp(np.clip(values * rng.uniform(0.3, 1.5), -8, 8)))
    if choice == 1:
        return f32(np.sign(values) * np.abs(values) ** rng.uniform(0.4, 2.5))
    if choice == 2:
        return f32(np.tanh(values * rng.uniform(0.5, 2)))
    if choice == 3:
        return f32(values.argsort().argsort() / len(values))
    if choice == 4:  # a count of events, mostly zero
        return f32(rng.poisson(np.exp(np.clip(rng.uniform(0.5, 1.5) * values + rng.uniform(-2, 1), -8, 5))))
    return f32(np.maximum(values, np.quantile(values, rng.uniform(0, 0.6))))


def _discretise(rng: Rng, values: Floats) -> Floats:
    """Levels in order (counts, grades) or, more often, category codes without order."""
    num_levels = int(rng.choice([2, 2, 3, 4, 6, 10, 20]))
    cuts = np.sort(rng.choice(values, num_levels - 1))
    levels = np.searchsorted(cuts, values)
    return f32(rng.permutation(num_levels)[levels] if rng.random() < 0.6 else levels)


def _hide_cells(rng: Rng, features: Floats) -> Floats:
    rates = rng.beta(0.5, 3, features.shape[1]) * (rng.random(features.shape[1]) < rng.uniform(0.1, 1))
    hidden = rng.random(features.shape) < rates
    if rng.random() < 0.3:  # missing not at random: large values go unreported
        hidden &= features > np.median(features, axis=0)
    return f32(np.where(hidden, np.nan, features))
