"""Payments of random design: a mechanism for the kind of question that the demo model answers, fraud.

`streams.py` draws any log that looks back on itself. Here the log is one of payments, so that the network learns what
such logs have in common: accounts with a home, habits and a spending level, shops with a trade and a price, and the
columns that every scorer of payments computes. Frauds come in schemes. A scheme is a set of traits: certain trades,
certain channels, abroad, at night, from a new device, in bursts, larger or tiny amounts, at one shop. Whether a scheme
has a trait, and how strongly, is drawn.

All numbers are drawn. The tables of `training/cards.py`, which judge the checkpoint, are another design of this family,
with numbers of its own, and are never seen in training.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from training.prior.draws import Floats, Ints, Rng
from training.prior.episodes import MAX_ORDINARY, choose_rows
from training.prior.events import hide_some
from training.prior.payments.columns import observe
from training.prior.payments.frauds import draw_outbreak, draw_scheme
from training.prior.payments.world import Payments, draw_ordinary, draw_world

__all__ = ["sample_payments"]


def sample_payments(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Ints]:
    """Features float32 [rows, features] with NaN, and labels int64 [rows] in `0..num_classes - 1`."""
    share = rng.uniform(0.06, 0.5)
    num_frauds = int(share * num_rows * rng.uniform(1, 1.5)) + num_classes
    rarity = np.exp(rng.uniform(np.log(0.01), np.log(0.3)))
    num_usual = max(num_rows, int(min(num_frauds / rarity, MAX_ORDINARY)))
    world = draw_world(rng, num_usual)
    usual = draw_ordinary(rng, world, num_usual)
    num_schemes = (num_classes - 1) * int(rng.integers(1, 6))
    parts = [usual]
    for scheme, part in enumerate(rng.dirichlet(np.full(num_schemes, 2.0))):
        make = draw_outbreak if rng.random() < 0.35 else draw_scheme
        parts.append(make(rng, world, usual, max(1, int(part * num_frauds)), scheme))
    together = Payments(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Payments)))
    labels = np.where(together.scheme < 0, 0, 1 + together.scheme % max(1, num_classes - 1))
    columns = observe(rng, world, together, labels > 0)
    chosen = rng.permutation(len(columns))[:num_features]
    while len(chosen) < num_features:  # more than a scorer has: some columns again, with noise
        chosen = np.append(chosen, rng.integers(len(columns)))
    rows = choose_rows(rng, labels, together.time, num_rows, share)
    features = np.stack([columns[number].values for number in chosen], axis=1)[rows]
    if len(chosen) > len(columns):
        features[:, len(columns) :] *= np.exp(rng.normal(0, 0.3, (num_rows, len(chosen) - len(columns))))
    if rng.random() < 0.3:
        hide_some(rng, features, [columns[number] for number in chosen])
    wrong = rng.random(num_rows) < rng.choice([0.0, 0.0, 0.0, 0.01])
    labels = np.where(wrong, rng.integers(0, num_classes, num_rows), labels[rows])
    return features.astype(np.float32), rng.permutation(num_classes)[labels]
