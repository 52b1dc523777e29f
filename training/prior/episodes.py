"""Rare events that belong together, and the rows that a context takes of them, for streams and payments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.prior.draws import Ints, Rng, Values

MAX_ORDINARY = 6_000
"""The most ordinary events that a stream is drawn with."""


def choose_rows(rng: Rng, labels: Ints, turn: Ints | Values, num_rows: int, share: float) -> Ints:
    """Choose the rows of a context, in which rare classes have a larger share than in the stream.

    Args:
        turn: [events] the order of the events, by which the chosen rows are sorted, or not at all.
        share: of the rows whose label is not 0, as far as there are enough.
    """
    rare, usual = np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)
    num_rare = max(min(len(rare), int(share * num_rows)), num_rows - len(usual))
    rows = np.concatenate([rng.permutation(rare)[:num_rare], rng.permutation(usual)[: num_rows - num_rare]])
    return rows[np.argsort(turn[rows])] if rng.random() < 0.4 else rng.permutation(rows)


def draw_episodes(rng: Rng, size: int, mean_further: Sequence[float]) -> tuple[Ints, Ints]:
    """Draw episodes of `size` events together, or a few more.

    Args:
        mean_further: one of these is the mean number of events after the first of an episode.

    Returns:
        The length of each episode, and the position of each event in its episode.
    """
    lengths = 1 + rng.poisson(rng.choice(mean_further), size)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), size)) + 1]
    return lengths, np.concatenate([np.arange(length) for length in lengths])


def draw_outbreaks(rng: Rng, key: Ints, time: Values, num_days: float, span: float, size: int) -> Ints:
    """Choose events of a few keys, each within `span` days of its own: one event at least, `size` at most.

    Args:
        key: [events] such as the shop of each event.
        time: [events] in days.
    """
    share = rng.uniform(0.2, 1)
    found = np.zeros(0, np.int64)
    for member in key[rng.integers(0, len(key), 200)]:  # a key with many events is met more often
        start = rng.uniform(0, max(num_days - span, 0.1))
        inside = (key == member) & (time >= start) & (time <= start + span)
        found = np.concatenate([found, np.flatnonzero(inside & (rng.random(len(inside)) < share))])
        if len(found) >= size:
            break
    return found[:size] if len(found) else np.zeros(1, np.int64)
