"""Kinds of columns in logs: amounts, counts, gaps, clocks, rates, attributes, codes and flags.

A column has ordinary values, and a function that disturbs some of them as an anomaly would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.prior.draws import Ints, Rng, Values, unequal_shares


@dataclass(frozen=True)
class Hidden:
    """Traits of rows that no column shows whole.

    Attributes:
        group: int [rows], the kind of each row.
        size: [rows, 3], such as how large and how busy the party behind a row is.
    """

    group: Ints
    size: Values


@dataclass(frozen=True)
class Column:
    """One column of a log.

    Attributes:
        values: ordinary values [rows].
        disturb: `disturb(rng, values, strength)` returns the values of rows that an anomaly touches.
        is_code: values are codes of categories, without order.
    """

    values: Values
    disturb: Callable[[Rng, Values, float], Values]
    is_code: bool = False


def plain(values: Values, *, is_code: bool = False) -> Column:
    """A column that no anomaly disturbs by itself."""
    return Column(values, lambda _rng, values, _strength: values, is_code)


def amount(rng: Rng, hidden: Hidden) -> Column:
    """Money, durations, volumes: log-normal, by group and size. An anomaly multiplies them, or has its own."""
    level = rng.normal(0, rng.uniform(0.2, 1.5), hidden.group.max() + 1)[hidden.group]
    size = rng.uniform(0, 0.8) * hidden.size[:, rng.integers(3)]
    spread = rng.uniform(0.15, 0.9)
    values = np.exp(rng.normal(1, 1.5) + level + size + rng.normal(0, spread, len(level)))
    shift, own = rng.choice([-1.0, 1.0, 1.0]), rng.random() < 0.2

    def disturb(rng: Rng, values: Values, strength: float) -> Values:
        if own:
            return np.exp(rng.normal(shift * strength, 0.5, len(values)))
        return values * np.exp(shift * rng.normal(strength, 0.5, len(values)))

    return Column(values, disturb)


def count(rng: Rng, hidden: Hidden) -> Column:
    """Events in a window of time, mostly few. An anomaly adds some."""
    busy = np.exp(rng.uniform(0, 0.9) * hidden.size[:, rng.integers(3)])
    values = rng.poisson(np.minimum(np.exp(rng.uniform(-3, 2.5)) * busy, 1e4)).astype(np.float64)
    more = np.exp(rng.uniform(-0.7, 1.5))
    return Column(values, lambda rng, values, strength: values + rng.poisson(more * strength, len(values)))


def gap(rng: Rng, hidden: Hidden) -> Column:
    """Time or distance since an event, over many orders of magnitude. An anomaly shortens or stretches it."""
    spread = rng.uniform(0.8, 2.2)
    size = rng.uniform(0, 0.7) * hidden.size[:, rng.integers(3)]
    values = np.exp(rng.normal(2, 2) + size + rng.normal(0, spread, len(size)))
    sign = rng.choice([-1.0, -1.0, 1.0])
    return Column(
        values,
        lambda rng, values, strength: values * np.exp(sign * spread * rng.normal(1.2 * strength, 0.7, len(values))),
    )


def clock(rng: Rng, hidden: Hidden) -> Column:
    """A time of day: a broad bump. An anomaly has its own."""
    values = np.clip(rng.normal(rng.uniform(9, 18), rng.uniform(2, 6), len(hidden.group)), 0, 24)
    centre, width = rng.uniform(0, 24), rng.uniform(1, 6)
    return Column(values, lambda rng, values, _: rng.normal(centre, width, len(values)) % 24)


def rate(rng: Rng, hidden: Hidden) -> Column:
    """A share of rare events, mostly exactly zero. An anomaly raises it."""
    seen = rng.random(len(hidden.group)) < rng.uniform(0.05, 0.6)
    values = np.where(seen, rng.beta(1, rng.uniform(5, 60), len(seen)), 0.0)
    other = rng.uniform(1.5, 12)
    return Column(values, lambda rng, values, _: np.maximum(values, rng.beta(1.5, other, len(values))))


def attribute(rng: Rng, hidden: Hidden) -> Column:
    """An age, a size, a temperature: a bell or a range, related to the size or not. An anomaly shifts it a little."""
    noise = rng.normal(size=len(hidden.group)) if rng.random() < 0.6 else rng.uniform(-1.7, 1.7, len(hidden.group))
    scale, centre = rng.lognormal(1, 1.5), rng.normal(0, 30)
    values = centre + scale * (noise + rng.uniform(0, 1) * hidden.size[:, rng.integers(3)])
    sign = rng.choice([-1.0, 1.0])
    return Column(values, lambda _, values, strength: values + sign * 0.6 * strength * scale)


def code(rng: Rng, hidden: Hidden) -> Column:
    """A category in codes without order, by group or not. An anomaly prefers some of them."""
    num_codes = int(rng.choice([2, 3, 4, 5, 7, 10, 15]))
    if rng.random() < 0.5:
        shares = np.stack([unequal_shares(rng, num_codes) for _ in range(hidden.group.max() + 1)]).cumsum(axis=1)
        codes = (rng.random((len(hidden.group), 1)) > shares[hidden.group]).sum(axis=1).clip(0, num_codes - 1)
    else:
        codes = rng.choice(num_codes, len(hidden.group), p=unequal_shares(rng, num_codes))
    names = rng.permutation(num_codes)
    preferred = unequal_shares(rng, num_codes)
    return Column(
        names[codes].astype(np.float64),
        lambda rng, values, _: names[rng.choice(num_codes, len(values), p=preferred)].astype(np.float64),
        is_code=True,
    )


def flag(rng: Rng, hidden: Hidden) -> Column:
    """Yes or no, mostly one of them. An anomaly has the other more often."""
    usual = rng.uniform(0.005, 0.4)
    values = (rng.random(len(hidden.group)) < usual).astype(np.float64)
    often = rng.uniform(usual, 1)
    return Column(values, lambda rng, values, _: (rng.random(len(values)) < often).astype(np.float64), is_code=True)


KINDS = (amount, count, gap, clock, rate, attribute, code, flag)
KIND_WEIGHTS = (0.19, 0.16, 0.12, 0.07, 0.08, 0.13, 0.17, 0.08)
