"""Tables as businesses log them: a mechanism whose columns are drawn already observed.

The mechanisms of `mechanisms.py` draw smooth quantities and spoil them afterwards. A log is another kind of table. Each
column has its own kind (`columns.py`). Most cells are ordinary or zero, and some are missing because of the value in
another column. A few rows belong to an *anomaly*: a fault, a fraud, an outbreak. Each anomaly disturbs a few columns,
each as its kind allows, in most of its rows. A class may have several anomalies, and rows of a weak anomaly are hard to
tell from ordinary rows.
"""

from __future__ import annotations

import numpy as np

from training.prior.columns import KIND_WEIGHTS, KINDS, Column, Hidden
from training.prior.draws import Floats, Ints, Rng, Values, unequal_shares


def sample_events(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Ints]:
    """Features float32 [rows, features] with NaN, and labels int64 [rows] in `0..num_classes - 1`."""
    num_groups = int(rng.integers(2, 13))
    hidden = Hidden(rng.choice(num_groups, num_rows, p=unequal_shares(rng, num_groups)), rng.normal(size=(num_rows, 3)))
    kinds = rng.choice(len(KINDS), num_features, p=KIND_WEIGHTS)
    columns = [KINDS[kind](rng, hidden) for kind in kinds]
    features = np.stack([column.values for column in columns], axis=1)
    anomaly, num_anomalies = _draw_anomalies(rng, num_rows, num_classes)
    for number in range(num_anomalies):
        apply_anomaly(rng, features, columns, np.flatnonzero(anomaly == number))
    derive(rng, features, columns)
    round_some(rng, features, columns)
    hide_some(rng, features, columns)
    labels = np.where(anomaly < 0, 0, 1 + anomaly % max(1, num_classes - 1))
    wrong = rng.random(num_rows) < rng.choice([0.0, 0.0, 0.01, 0.05])
    labels = np.where(wrong, rng.integers(0, num_classes, num_rows), labels)
    return features.astype(np.float32), rng.permutation(num_classes)[labels]


def _draw_anomalies(rng: Rng, num_rows: int, num_classes: int) -> tuple[Ints, int]:
    """The anomaly of each row, -1 for an ordinary row, and the number of anomalies."""
    num_anomalies = (num_classes - 1) * int(rng.integers(1, 6))
    anomalies = rng.choice(num_anomalies, num_rows, p=rng.dirichlet(np.full(num_anomalies, 2.0)))
    return np.where(rng.random(num_rows) < rng.uniform(0.06, 0.5), anomalies, -1), num_anomalies


def apply_anomaly(rng: Rng, features: Values, columns: list[Column], rows: Ints) -> None:
    """Disturb a few columns of the rows of one anomaly, in place."""
    most = min(len(columns), 9)
    used = rng.choice(len(columns), int(rng.integers(1, most + 1)), replace=False)
    share, strength = rng.uniform(0.5, 1), rng.lognormal(0.2, 0.6)
    for column in used:
        touched = rows[rng.random(len(rows)) < share]
        features[touched, column] = columns[column].disturb(rng, features[touched, column], strength)


def derive(rng: Rng, features: Values, columns: list[Column]) -> None:
    """Replace some columns by sums, products or ratios of two others, in place. They carry over what is disturbed."""
    numbers = [position for position, column in enumerate(columns) if not column.is_code]
    for position in numbers:
        if len(numbers) > 2 and rng.random() < 0.12:
            one, other = (features[:, source] for source in rng.choice(numbers, 2))
            noise = np.exp(rng.normal(0, rng.uniform(0, 0.4), len(features)))
            derived = (one * other, one / (1 + np.abs(other)), one + other)[rng.integers(3)]
            features[:, position] = np.clip(derived * noise, -1e6, 1e6)


def round_some(rng: Rng, features: Values, columns: list[Column]) -> None:
    """Round some of the columns that are not codes, in place."""
    for position, column in enumerate(columns):
        if not column.is_code and rng.random() < 0.6:
            features[:, position] = features[:, position].round(int(rng.integers(0, 4)))


def hide_some(rng: Rng, features: Values, columns: list[Column]) -> None:
    """Make cells NaN, in place: by chance, or because of the value of a code in the same row."""
    codes = [position for position, column in enumerate(columns) if column.is_code]
    some = rng.uniform(0, 0.5)
    original = features.copy()
    for position in range(len(columns)):
        if rng.random() < some:
            features[rng.random(len(features)) < rng.uniform(0, 0.12), position] = np.nan
            if codes and rng.random() < 0.5:
                code = original[:, rng.choice(codes)]
                value = rng.choice(np.unique(code))
                features[code == value if rng.random() < 0.5 else code != value, position] = np.nan
