"""Step 1 of the prior: mechanisms that draw features and class scores that belong together.

Every mechanism takes the generator and the numbers of rows, features and classes. It returns features float32
[rows, features] and scores float32 [rows, 1] or [rows, classes].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.prior.draws import Floats, Rng, f32, latents, normal, standardise


def linear_factors(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """Correlated features from a few latent factors; scores linear in the factors or in some of the features."""
    num_factors = int(rng.integers(1, max(2, num_features) + 1))
    factors = latents(rng, num_rows, num_factors)
    loadings = normal(rng, num_factors, num_features) * (rng.random((num_factors, num_features)) < rng.uniform(0.2, 1))
    features = factors @ loadings / np.sqrt(num_factors)
    features = features + normal(rng, num_rows, num_features) * rng.lognormal(-1, 1, num_features)
    num_scores = _num_scores(rng, num_classes)
    cause = factors if rng.random() < 0.4 else standardise(features)
    weights = normal(rng, cause.shape[1], num_scores) * (rng.random((cause.shape[1], 1)) < rng.uniform(0.15, 1))
    return f32(features), f32(cause @ weights)


def clusters(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """Each class is one or more Gaussian clusters, with shared or own covariance; scores are the memberships."""
    per_class = int(rng.integers(1, 4)) if rng.random() < 0.4 else 1
    num_clusters = num_classes * per_class
    cluster = rng.choice(num_clusters, num_rows, p=rng.dirichlet(np.full(num_clusters, 2.0)))
    informative = rng.random(num_features) < rng.uniform(0.2, 1)
    centres = normal(rng, num_clusters, num_features) * informative * rng.lognormal(0, 0.7)
    num_mixings = num_clusters if rng.random() < 0.3 else 1
    mixing = normal(rng, num_mixings, num_features, num_features) * rng.uniform(0, 0.6) / np.sqrt(num_features)
    mixing = mixing + np.eye(num_features, dtype=np.float32)
    noise = latents(rng, num_rows, num_features)
    features = centres[cluster] + np.einsum("nf,nfg->ng", noise, mixing[cluster % num_mixings])
    scores = np.zeros((num_rows, num_classes), np.float32)
    scores[np.arange(num_rows), cluster % num_classes] = 3.0
    return f32(features), scores


def network(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """A structural causal model: a random network, read at random nodes.

    Features may be causes, effects or siblings of the scores.
    """
    width = int(rng.integers(max(4, num_features // 2), 2 * num_features + 8))
    depth = int(rng.integers(1, 5))
    layer = latents(rng, num_rows, int(rng.integers(1, width + 1)))
    nodes = [layer]
    noise = rng.choice([0.0, 0.02, 0.1, 0.3])
    for _ in range(depth):
        weights = normal(rng, layer.shape[1], width) * (rng.random((layer.shape[1], width)) < rng.uniform(0.3, 1))
        layer = standardise(layer @ weights + 1e-3 * normal(rng, num_rows, width))
        layer = _activate(rng, layer + normal(rng, 1, width) * rng.uniform(0, 1))
        layer = standardise(layer) + noise * normal(rng, num_rows, width)
        nodes.append(layer)
    num_scores = _num_scores(rng, num_classes)
    every = np.concatenate(nodes, axis=1)
    # Scores are nodes of the last layer and depend on all layers before. Features are nodes of any layer.
    score_nodes = every.shape[1] - 1 - rng.choice(width, min(num_scores, width), replace=False)
    others = np.setdiff1d(np.arange(every.shape[1]), score_nodes)
    if rng.random() < 0.5:  # only causes are observed, as in most tabular tasks
        roots = np.setdiff1d(others, np.arange(every.shape[1] - width, every.shape[1]))
        others = roots if len(roots) else others
    seen = rng.choice(others, num_features, replace=len(others) < num_features)
    scores = every[:, score_nodes]
    if scores.shape[1] < num_scores:
        scores = scores @ normal(rng, scores.shape[1], num_scores)
    return f32(every[:, seen]), f32(scores)


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


def _activate(rng: Rng, layer: Floats) -> Floats:
    """Apply one activation to the whole layer, or one of two to each node."""
    first, second = rng.choice(len(_ACTIVATIONS), 2)
    out = _ACTIVATIONS[first](layer)
    if rng.random() < 0.5:
        out = np.where(rng.random(layer.shape[1]) < 0.5, out, _ACTIVATIONS[second](layer))
    return f32(out)


def rules(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """Sums or maxima of rules over a few features: oblivious trees with soft or hard thresholds, or single ramps."""
    features, _ = (linear_factors if rng.random() < 0.7 else network)(rng, num_rows, num_features, 2)
    standard = standardise(features)
    num_scores = _num_scores(rng, num_classes)
    combine: Callable[..., Floats] = np.max if rng.random() < 0.35 else np.sum
    sharpness = rng.choice([2.0, 6.0, 50.0])
    columns = []
    for _ in range(num_scores):
        terms = []
        for _ in range(int(rng.integers(1, 9))):
            depth = int(rng.integers(1, 4))
            used = rng.integers(0, num_features, depth)
            cuts = normal(rng, 1, depth) * 0.8
            side = np.where(rng.random(depth) < 0.5, 1.0, -1.0)
            held = 1 / (1 + np.exp(np.clip(-sharpness * side * (standard[:, used] - cuts), -30, 30)))
            terms.append(rng.gamma(1.5) * held.prod(axis=1))
        columns.append(combine(np.stack(terms), axis=0))
    return features, f32(np.stack(columns, axis=1))


def disturbances(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """An ordinary population (class 0), some of whose rows have one of a few anomalies (faults, frauds, diseases).

    Each anomaly has its own few features, which it shifts, widens, freezes or exchanges, and its own strength. A class
    may have several anomalies. Rows of a weak anomaly are hard to tell from ordinary rows.
    """
    features, _ = (linear_factors if rng.random() < 0.5 else network)(rng, num_rows, num_features, 2)
    features = standardise(features)
    num_anomalies = (num_classes - 1) * int(rng.integers(1, 5))
    share = rng.uniform(0.05, 0.5)
    anomalies = rng.choice(num_anomalies, num_rows, p=rng.dirichlet(np.full(num_anomalies, 2.0)))
    anomaly = np.where(rng.random(num_rows) < share, anomalies, -1)
    for number in range(num_anomalies):
        rows = np.flatnonzero(anomaly == number)
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
    scores[np.arange(num_rows), np.where(anomaly < 0, 0, 1 + anomaly % max(1, num_classes - 1))] = 3.0
    return f32(features), scores


def prototypes(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """A row has the class of its nearest prototype, by a few of the features. One feature alone says little."""
    features, _ = (linear_factors if rng.random() < 0.7 else network)(rng, num_rows, num_features, 2)
    standard = standardise(features)
    used = rng.choice(num_features, int(rng.integers(1, min(num_features, 6) + 1)), replace=False)
    num_prototypes = int(np.exp(rng.uniform(np.log(2 * num_classes), np.log(12 * num_classes))))
    prototypes = standard[rng.integers(0, num_rows, num_prototypes)][:, used] + 0.3 * normal(
        rng, num_prototypes, len(used)
    )
    scale = rng.lognormal(0, 0.4, len(used))
    distance = np.square((standard[:, None, used] - prototypes) * scale).sum(axis=2)
    classes = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_prototypes - num_classes)])
    scores = np.zeros((num_rows, num_classes), np.float32)
    scores[np.arange(num_rows), classes[distance.argmin(axis=1)]] = 3.0
    return f32(features), scores


def trees(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """One or a few deep trees with random leaves, cut at quantiles of the rows that reach each node."""
    features, _ = (linear_factors if rng.random() < 0.7 else network)(rng, num_rows, num_features, 2)
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
                    scores[rows] += normal(rng, 1, num_scores)
                    continue
                values = features[rows, rng.choice(used)]
                below = values <= np.sort(values)[int(len(rows) * rng.uniform(0.2, 0.8))]
                following += [rows[below], rows[~below]]
            nodes = following
    return f32(features), scores


def additive(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Floats]:
    """A sum of one curve for each feature, such as a step, a hinge or a level per bin. Many weak features add up."""
    features, _ = (linear_factors if rng.random() < 0.7 else network)(rng, num_rows, num_features, 2)
    standard = standardise(features)
    used = np.flatnonzero(rng.random(num_features) < rng.uniform(0.4, 1))
    scores = np.zeros((num_rows, _num_scores(rng, num_classes)), np.float32)
    for column in used if len(used) else [0]:
        for score in range(scores.shape[1]):
            scores[:, score] += rng.gamma(1.0) * standardise(_curve(rng, standard[:, column, None]))[:, 0]
    return features, scores


def _curve(rng: Rng, values: Floats) -> Floats:
    """A random function of one standardised column [rows, 1]."""
    kind, cut = rng.integers(0, 6), rng.normal() * 0.8
    sign, width = rng.choice([-1.0, 1.0]), rng.lognormal(-0.7, 0.5)
    if kind == 0:
        return f32(sign * (values > cut))
    if kind == 1:
        return f32(sign * np.maximum(values - cut, 0))
    if kind == 2:
        return f32(sign * np.exp(-np.square((values - cut) / width)))
    if kind == 3:
        return f32(sign * np.minimum(np.square(values - 0.3 * cut), 6))
    if kind == 4:
        return f32(sign * np.tanh(values / width))
    cuts = np.sort(rng.normal(size=int(rng.integers(2, 10))))
    return normal(rng, len(cuts) + 1)[np.searchsorted(cuts, values)]


def _num_scores(rng: Rng, num_classes: int) -> int:
    """The number of scores: one, to be cut into ordered classes, or one for each class."""
    if num_classes == 2:
        return 1 if rng.random() < 0.85 else 2
    return 1 if rng.random() < 0.25 else num_classes
