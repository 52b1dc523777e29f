"""A synthetic prior over small classification tables.

TabPFN learns to do Bayesian inference under the tables that it is trained on, so this file decides what the demo
checkpoint believes a table looks like. A table is drawn in three steps, each independent of the others:

1. a *mechanism* draws features and class scores that belong together: a linear model of shared latent factors, class
   clusters, a random network read at random nodes (a structural causal model), rules, an ordinary population some of
   whose rows are disturbed in one of several ways, the nearest of many prototypes, deep trees or one curve a
   column. Three more bring tables already observed and labelled: a log of events (`events.py`), columns that look back
   on a stream of events (`streams.py`), and payments (`payments.py`);
2. *observation* spoils the features as the world does: monotone warps, heavy tails, rounding, categories without
   order, irrelevant columns, missing values;
3. *labelling* turns scores into classes: noise, class imbalance, permuted class numbers.

Every draw comes from the generator passed in, so a seed fixes a table. Arrays are float32 `[rows, features]` with NaN
for missing, labels int64 `[rows]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.events import sample_events
from training.payments import sample_payments
from training.streams import sample_streams

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

MAX_CLASSES = 10


@dataclass(frozen=True)
class Table:
    """One labelled table; `features` float32 [rows, features], `labels` int64 [rows] in `0..MAX_CLASSES - 1`."""

    features: Floats
    labels: Ints


def sample_table(
    rng: np.random.Generator, num_rows: int, num_features: int, weights: Sequence[float], binary_share: float = 0.65
) -> Table:
    """Draw one table of up to `MAX_CLASSES` classes; `weights` are one of `..._WEIGHTS`."""
    num_classes = 2 if rng.random() < binary_share else int(rng.integers(3, MAX_CLASSES + 1))
    choice = int(rng.choice(len(weights), p=weights))
    if choice >= len(_MECHANISMS):
        features, labels = _OBSERVED[choice - len(_MECHANISMS)](rng, num_rows, num_features, num_classes)
        return Table(features, labels)
    mechanism = _MECHANISMS[choice]
    num_drawn = max(1, num_features - _num_irrelevant(rng, num_features))
    features, scores = mechanism(rng, num_rows, num_drawn, num_classes)
    features = _with_irrelevant(rng, features, num_features)
    return Table(_observe(rng, features), _label(rng, scores, num_classes))


# --- step 1: mechanisms. Each returns features [rows, features] and scores [rows, 1 or classes] ---------------------


def _linear_factors(
    rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int
) -> tuple[Floats, Floats]:
    """Correlated features from a few latent factors; scores linear in the factors or in some of the features."""
    num_factors = int(rng.integers(1, max(2, num_features) + 1))
    factors = _latents(rng, num_rows, num_factors)
    loadings = _normal(rng, num_factors, num_features) * (rng.random((num_factors, num_features)) < rng.uniform(0.2, 1))
    features = factors @ loadings / np.sqrt(num_factors)
    features = features + _normal(rng, num_rows, num_features) * rng.lognormal(-1, 1, num_features)
    num_scores = _num_scores(rng, num_classes)
    cause = factors if rng.random() < 0.4 else _standardise(features)
    weights = _normal(rng, cause.shape[1], num_scores) * (rng.random((cause.shape[1], 1)) < rng.uniform(0.15, 1))
    return _f32(features), _f32(cause @ weights)


def _clusters(rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """Each class is one or more Gaussian clusters, with shared or own covariance; scores are the memberships."""
    per_class = int(rng.integers(1, 4)) if rng.random() < 0.4 else 1
    num_clusters = num_classes * per_class
    cluster = rng.choice(num_clusters, num_rows, p=rng.dirichlet(np.full(num_clusters, 2.0)))
    informative = rng.random(num_features) < rng.uniform(0.2, 1)
    centres = _normal(rng, num_clusters, num_features) * informative * rng.lognormal(0, 0.7)
    num_mixings = num_clusters if rng.random() < 0.3 else 1
    mixing = _normal(rng, num_mixings, num_features, num_features) * rng.uniform(0, 0.6) / np.sqrt(num_features)
    mixing = mixing + np.eye(num_features, dtype=np.float32)
    noise = _latents(rng, num_rows, num_features)
    features = centres[cluster] + np.einsum("nf,nfg->ng", noise, mixing[cluster % num_mixings])
    scores = np.zeros((num_rows, num_classes), np.float32)
    scores[np.arange(num_rows), cluster % num_classes] = 3.0
    return _f32(features), scores


def _network(rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """A random network read at random nodes: features may be causes, effects or siblings of the scores."""
    width = int(rng.integers(max(4, num_features // 2), 2 * num_features + 8))
    depth = int(rng.integers(1, 5))
    layer = _latents(rng, num_rows, int(rng.integers(1, width + 1)))
    nodes = [layer]
    noise = rng.choice([0.0, 0.02, 0.1, 0.3])
    for _ in range(depth):
        weights = _normal(rng, layer.shape[1], width) * (rng.random((layer.shape[1], width)) < rng.uniform(0.3, 1))
        layer = _standardise(layer @ weights + 1e-3 * _normal(rng, num_rows, width))
        layer = _activate(rng, layer + _normal(rng, 1, width) * rng.uniform(0, 1))
        layer = _standardise(layer) + noise * _normal(rng, num_rows, width)
        nodes.append(layer)
    num_scores = _num_scores(rng, num_classes)
    every = np.concatenate(nodes, axis=1)
    # Scores from the last layer are a function of everything above; features from anywhere, the last layer included.
    score_nodes = every.shape[1] - 1 - rng.choice(width, min(num_scores, width), replace=False)
    others = np.setdiff1d(np.arange(every.shape[1]), score_nodes)
    if rng.random() < 0.5:  # only causes are seen, as in most tabular tasks
        roots = np.setdiff1d(others, np.arange(every.shape[1] - width, every.shape[1]))
        others = roots if len(roots) else others
    seen = rng.choice(others, num_features, replace=len(others) < num_features)
    scores = every[:, score_nodes]
    if scores.shape[1] < num_scores:
        scores = scores @ _normal(rng, scores.shape[1], num_scores)
    return _f32(every[:, seen]), _f32(scores)


def _rules(rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """Sums or maxima of rules over a few features: oblivious trees, thresholds soft or hard, single-feature ramps."""
    features, _ = (_linear_factors if rng.random() < 0.7 else _network)(rng, num_rows, num_features, 2)
    standard = _standardise(features)
    num_scores = _num_scores(rng, num_classes)
    combine: Callable[..., Floats] = np.max if rng.random() < 0.35 else np.sum
    sharpness = rng.choice([2.0, 6.0, 50.0])
    columns = []
    for _ in range(num_scores):
        terms = []
        for _ in range(int(rng.integers(1, 9))):
            depth = int(rng.integers(1, 4))
            used = rng.integers(0, num_features, depth)
            cuts = _normal(rng, 1, depth) * 0.8
            side = np.where(rng.random(depth) < 0.5, 1.0, -1.0)
            held = 1 / (1 + np.exp(np.clip(-sharpness * side * (standard[:, used] - cuts), -30, 30)))
            terms.append(rng.gamma(1.5) * held.prod(axis=1))
        columns.append(combine(np.stack(terms), axis=0))
    return features, _f32(np.stack(columns, axis=1))


def _disturbances(
    rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int
) -> tuple[Floats, Floats]:
    """An ordinary population (class 0), and rows of it disturbed in one of a few ways (faults, frauds, diseases).

    Each way has its own few features, which it shifts, widens, freezes or exchanges, and its own strength; a class
    may have several ways, and the weaker ones hide among the ordinary rows.
    """
    features, _ = (_linear_factors if rng.random() < 0.5 else _network)(rng, num_rows, num_features, 2)
    features = _standardise(features)
    num_ways = (num_classes - 1) * int(rng.integers(1, 5))
    share = rng.uniform(0.05, 0.5)
    ways = rng.choice(num_ways, num_rows, p=rng.dirichlet(np.full(num_ways, 2.0)))
    way = np.where(rng.random(num_rows) < share, ways, -1)
    for number in range(num_ways):
        rows = np.flatnonzero(way == number)
        used = rng.choice(num_features, int(rng.integers(1, min(num_features, 7) + 1)), replace=False)
        strength = rng.lognormal(0.3, 0.5)
        for column in used:
            values = features[rows, column]
            kind = rng.random()
            if kind < 0.5:
                values = values + strength * rng.choice([-1.0, 1.0])
            elif kind < 0.65:
                values = values * (1 + strength)
            elif kind < 0.85:
                values = rng.normal() + 0.3 * rng.random() * values
            else:
                values = rng.permutation(values)
            touched = rng.random(len(rows)) < rng.uniform(0.5, 1)
            features[rows[touched], column] = values[touched]
    scores = np.zeros((num_rows, num_classes), np.float32)
    scores[np.arange(num_rows), np.where(way < 0, 0, 1 + way % max(1, num_classes - 1))] = 3.0
    return _f32(features), scores


def _prototypes(rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """The class of the nearest of many prototypes in a few of the features: no feature tells much alone."""
    features, _ = (_linear_factors if rng.random() < 0.7 else _network)(rng, num_rows, num_features, 2)
    standard = _standardise(features)
    used = rng.choice(num_features, int(rng.integers(1, min(num_features, 6) + 1)), replace=False)
    num_prototypes = int(np.exp(rng.uniform(np.log(2 * num_classes), np.log(12 * num_classes))))
    prototypes = standard[rng.integers(0, num_rows, num_prototypes)][:, used] + 0.3 * _normal(
        rng, num_prototypes, len(used)
    )
    scale = rng.lognormal(0, 0.4, len(used))
    distance = np.square((standard[:, None, used] - prototypes) * scale).sum(axis=2)
    classes = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_prototypes - num_classes)])
    scores = np.zeros((num_rows, num_classes), np.float32)
    scores[np.arange(num_rows), classes[distance.argmin(axis=1)]] = 3.0
    return _f32(features), scores


def _trees(rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """One or a few deep trees with random leaves, cut at quantiles of what reaches each node."""
    features, _ = (_linear_factors if rng.random() < 0.7 else _network)(rng, num_rows, num_features, 2)
    used = rng.choice(num_features, int(rng.integers(1, min(num_features, 10) + 1)), replace=False)
    num_scores = _num_scores(rng, num_classes)
    scores = np.zeros((num_rows, num_scores), np.float32)
    for _ in range(int(rng.choice([1, 1, 2, 3, 5]))):
        depth = int(rng.integers(2, 7))
        nodes = [np.arange(num_rows)]
        for level in range(depth + 1):
            following = []
            for rows in nodes:
                if level == depth or len(rows) < 8:
                    scores[rows] += _normal(rng, 1, num_scores)
                    continue
                values = features[rows, rng.choice(used)]
                below = values <= np.sort(values)[int(len(rows) * rng.uniform(0.2, 0.8))]
                following += [rows[below], rows[~below]]
            nodes = following
    return _f32(features), scores


def _additive(rng: np.random.Generator, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """A sum of one curve per feature: steps, hinges, windows, tails, a level per bin. Many weak columns add up."""
    features, _ = (_linear_factors if rng.random() < 0.7 else _network)(rng, num_rows, num_features, 2)
    standard = _standardise(features)
    used = np.flatnonzero(rng.random(num_features) < rng.uniform(0.4, 1))
    scores = np.zeros((num_rows, _num_scores(rng, num_classes)), np.float32)
    for column in used if len(used) else [0]:
        for score in range(scores.shape[1]):
            scores[:, score] += rng.gamma(1.0) * _standardise(_curve(rng, standard[:, column, None]))[:, 0]
    return features, scores


def _curve(rng: np.random.Generator, values: Floats) -> Floats:
    """A random function of one standardised column [rows, 1]."""
    kind, cut = rng.integers(0, 6), rng.normal() * 0.8
    sign, width = rng.choice([-1.0, 1.0]), rng.lognormal(-0.7, 0.5)
    if kind == 0:
        return _f32(sign * (values > cut))
    if kind == 1:
        return _f32(sign * np.maximum(values - cut, 0))
    if kind == 2:
        return _f32(sign * np.exp(-np.square((values - cut) / width)))
    if kind == 3:
        return _f32(sign * np.minimum(np.square(values - 0.3 * cut), 6))
    if kind == 4:
        return _f32(sign * np.tanh(values / width))
    cuts = np.sort(rng.normal(size=int(rng.integers(2, 10))))
    return _normal(rng, len(cuts) + 1)[np.searchsorted(cuts, values)]


_MECHANISMS: tuple[Callable[[np.random.Generator, int, int, int], tuple[Floats, Floats]], ...] = (
    _linear_factors,
    _clusters,
    _network,
    _rules,
    _disturbances,
    _prototypes,
    _trees,
    _additive,
)
_OBSERVED: tuple[Callable[[np.random.Generator, int, int, int], tuple[Floats, Ints]], ...] = (
    sample_events,
    sample_streams,
    sample_payments,
)
"""Mechanisms whose tables come observed and labelled; their weights follow the others'."""
BASIC_WEIGHTS = (0.30, 0.12, 0.35, 0.23)
"""How often each mechanism is drawn while the network learns what a label is."""
FULL_WEIGHTS = (0.24, 0.10, 0.25, 0.16, 0.25)
"""How often afterwards."""
FINAL_WEIGHTS = (0.03, 0.01, 0.03, 0.03, 0.03, 0.01, 0.03, 0.06, 0.04, 0.11, 0.62)
"""How often in the end. A sum of many columns' own curves is what tables are most often made of, and logs are what is
asked of a server in real time."""


# --- step 2: observation ---------------------------------------------------------------------------------------------


def _num_irrelevant(rng: np.random.Generator, num_features: int) -> int:
    return int(rng.integers(0, num_features // 2 + 1)) if rng.random() < 0.4 else 0


def _with_irrelevant(rng: np.random.Generator, features: Floats, num_features: int) -> Floats:
    missing = num_features - features.shape[1]
    if missing > 0:
        features = np.concatenate([features, _latents(rng, len(features), missing)], axis=1)
    return features[:, rng.permutation(num_features)]


def _observe(rng: np.random.Generator, features: Floats) -> Floats:
    features = _standardise(features)
    warp_rate, category_rate = rng.choice([0.0, 0.3, 0.8]), rng.choice([0.0, 0.0, 0.2, 0.5])
    for column in range(features.shape[1]):
        kind = rng.random()
        if kind < category_rate:
            features[:, column] = _discretise(rng, features[:, column])
        elif kind < category_rate + (1 - category_rate) * warp_rate:
            features[:, column] = _warp(rng, features[:, column])
    if rng.random() < 0.3:
        features = _with_missing(rng, features)
    return features


def _warp(rng: np.random.Generator, values: Floats) -> Floats:
    """A monotone warp: what units, logarithms and saturating sensors do to a quantity."""
    choice = rng.integers(0, 6)
    if choice == 0:
        return _f32(np.exp(np.clip(values * rng.uniform(0.3, 1.5), -8, 8)))
    if choice == 1:
        return _f32(np.sign(values) * np.abs(values) ** rng.uniform(0.4, 2.5))
    if choice == 2:
        return _f32(np.tanh(values * rng.uniform(0.5, 2)))
    if choice == 3:
        return _f32(values.argsort().argsort() / len(values))
    if choice == 4:  # events counted, mostly none of them
        return _f32(rng.poisson(np.exp(np.clip(rng.uniform(0.5, 1.5) * values + rng.uniform(-2, 1), -8, 5))))
    return _f32(np.maximum(values, np.quantile(values, rng.uniform(0, 0.6))))


def _discretise(rng: np.random.Generator, values: Floats) -> Floats:
    """Levels in order (counts, grades) or, more often, category codes without order."""
    num_levels = int(rng.choice([2, 2, 3, 4, 6, 10, 20]))
    cuts = np.sort(rng.choice(values, num_levels - 1))
    levels = np.searchsorted(cuts, values)
    return _f32(rng.permutation(num_levels)[levels] if rng.random() < 0.6 else levels)


def _with_missing(rng: np.random.Generator, features: Floats) -> Floats:
    rates = rng.beta(0.5, 3, features.shape[1]) * (rng.random(features.shape[1]) < rng.uniform(0.1, 1))
    hidden = rng.random(features.shape) < rates
    if rng.random() < 0.3:  # missing not at random: large values go unreported
        hidden &= features > np.median(features, axis=0)
    return _f32(np.where(hidden, np.nan, features))


# --- step 3: labelling -----------------------------------------------------------------------------------------------


def _label(rng: np.random.Generator, scores: Floats, num_classes: int) -> Ints:
    scores = _standardise(scores)
    if rng.random() < 0.75:
        scores = scores + _normal(rng, *scores.shape) * rng.lognormal(-1.2, 0.9)
    if scores.shape[1] == 1:
        labels = np.searchsorted(_cuts(rng, scores[:, 0], num_classes), scores[:, 0])
    else:
        labels = (scores + _normal(rng, 1, num_classes) * rng.uniform(0, 0.7)).argmax(axis=1)
    return rng.permutation(num_classes)[labels].astype(np.int64)


def _cuts(rng: np.random.Generator, scores: Floats, num_classes: int) -> Floats:
    if num_classes == 2:
        imbalanced = rng.random() < 0.4
        quantiles = np.array([1 - rng.uniform(0.02, 0.3) if imbalanced else rng.uniform(0.3, 0.7)])
    else:
        quantiles = np.cumsum(rng.dirichlet(np.full(num_classes, 4.0)))[:-1]
    return _f32(np.quantile(scores, quantiles))


# --- shared pieces ---------------------------------------------------------------------------------------------------


def _num_scores(rng: np.random.Generator, num_classes: int) -> int:
    """One score cut into ordered classes, or a score per class."""
    if num_classes == 2:
        return 1 if rng.random() < 0.85 else 2
    return 1 if rng.random() < 0.25 else num_classes


def _latents(rng: np.random.Generator, num_rows: int, num_columns: int) -> Floats:
    """Independent sources: normal, uniform, heavy-tailed, or clustered."""
    choice = rng.random()
    if choice < 0.5:
        return _normal(rng, num_rows, num_columns)
    if choice < 0.7:
        return _f32(rng.uniform(-1.7, 1.7, (num_rows, num_columns)))
    if choice < 0.85:
        return _f32(np.clip(rng.standard_t(3, (num_rows, num_columns)), -12, 12))
    centres = _normal(rng, int(rng.integers(2, 8)), num_columns) * 1.5
    return centres[rng.integers(0, len(centres), num_rows)] + 0.5 * _normal(rng, num_rows, num_columns)


_ACTIVATIONS: tuple[Callable[[Floats], Floats], ...] = (
    np.tanh,
    lambda x: np.maximum(x, 0),
    lambda x: x,
    np.square,
    np.abs,
    lambda x: np.sin(2 * x),
    lambda x: np.exp(-np.square(x)),
    lambda x: (x > 0).astype(np.float32),
    lambda x: x * np.roll(x, 1, axis=1),
)


def _activate(rng: np.random.Generator, layer: Floats) -> Floats:
    """One activation for the whole layer, or a mixture of two over its nodes."""
    first, second = rng.choice(len(_ACTIVATIONS), 2)
    out = _ACTIVATIONS[first](layer)
    if rng.random() < 0.5:
        out = np.where(rng.random(layer.shape[1]) < 0.5, out, _ACTIVATIONS[second](layer))
    return _f32(out)


def _standardise(values: Floats) -> Floats:
    spread = values.std(axis=0)
    return _f32((values - values.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0))


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _f32(values: NDArray[np.generic]) -> Floats:
    return values.astype(np.float32)
