"""Draws one table: chooses the mechanism, and applies observation and labelling where the mechanism leaves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.prior import mechanisms
from training.prior.draws import Floats, Ints, Rng
from training.prior.events import sample_events
from training.prior.labelling import label
from training.prior.observation import add_irrelevant, draw_num_irrelevant, observe
from training.prior.payments import sample_payments
from training.prior.streams import sample_streams

MAX_CLASSES = 10

_MECHANISMS: tuple[Callable[[Rng, int, int, int], tuple[Floats, Floats]], ...] = (
    mechanisms.linear_factors,
    mechanisms.clusters,
    mechanisms.network,
    mechanisms.rules,
    mechanisms.disturbances,
    mechanisms.prototypes,
    mechanisms.trees,
    mechanisms.additive,
)
_OBSERVED: tuple[Callable[[Rng, int, int, int], tuple[Floats, Ints]], ...] = (
    sample_events,
    sample_streams,
    sample_payments,
)
"""Mechanisms whose tables are already observed and labelled. Their weights follow those of the others."""

BASIC_WEIGHTS = (0.30, 0.12, 0.35, 0.23)
"""The probability of each mechanism while the network learns what a label is."""
FULL_WEIGHTS = (0.24, 0.10, 0.25, 0.16, 0.25)
"""The probabilities in the second stage."""
FINAL_WEIGHTS = (0.03, 0.01, 0.03, 0.03, 0.03, 0.01, 0.03, 0.06, 0.04, 0.11, 0.62)
"""The probabilities in the last stages. Most real tables are sums of curves, one for each of many columns (`additive`),
and logs of events are what callers of a real-time server ask about."""


@dataclass(frozen=True)
class Table:
    """One labelled table: `features` float32 [rows, features], `labels` int64 [rows] in `0..MAX_CLASSES - 1`."""

    features: Floats
    labels: Ints


def sample_table(
    rng: Rng, num_rows: int, num_features: int, weights: Sequence[float], binary_share: float = 0.65
) -> Table:
    """Draw one table of up to `MAX_CLASSES` classes.

    Args:
        weights: the probability of each mechanism, such as `FINAL_WEIGHTS`.
        binary_share: the probability of two classes.
    """
    num_classes = 2 if rng.random() < binary_share else int(rng.integers(3, MAX_CLASSES + 1))
    choice = int(rng.choice(len(weights), p=weights))
    if choice >= len(_MECHANISMS):
        features, labels = _OBSERVED[choice - len(_MECHANISMS)](rng, num_rows, num_features, num_classes)
        return Table(features, labels)
    num_drawn = max(1, num_features - draw_num_irrelevant(rng, num_features))
    features, scores = _MECHANISMS[choice](rng, num_rows, num_drawn, num_classes)
    features = add_irrelevant(rng, features, num_features)
    return Table(observe(rng, features), label(rng, scores, num_classes))
