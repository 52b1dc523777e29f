"""Tables as businesses log them: a mechanism of the prior (`prior.py`) that draws columns already observed.

The other mechanisms draw smooth quantities and spoil them afterwards. A log is another kind of table: each column has
its own kind (an amount, a count, a clock, a rate, a code, a flag ...), most cells are ordinary or zero, some are
missing because of what another column says, and a few rows are part of something else: a fault, a fraud, an outbreak.
Each such *way* touches a few columns, each as its kind allows, in most of its rows; a class may have several ways, and
the weak ones hide among the ordinary rows.

All parameters are drawn. Nothing is taken from `cards.py`, whose tables the checkpoint is judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Values = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Hidden:
    """What no column shows whole: `group` int [rows], its kind of row; `size` [rows, 3], how large, how busy ..."""

    group: Ints
    size: Values


@dataclass(frozen=True)
class Column:
    """Ordinary values [rows], and what a way makes of some of them: `touch(rng, values, strength)`."""

    values: Values
    touch: Callable[[Rng, Values, float], Values]
    is_code: bool = False


def plain(values: Values, *, is_code: bool = False) -> Column:
    """A column that no way touches by itself."""
    return Column(values, lambda _rng, values, _strength: values, is_code)


def sample_events(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Ints]:
    """Features float32 [rows, features] with NaN, and labels int64 [rows] in `0..num_classes - 1`."""
    num_groups = int(rng.integers(2, 13))
    hidden = Hidden(rng.choice(num_groups, num_rows, p=unequal_shares(rng, num_groups)), rng.normal(size=(num_rows, 3)))
    kinds = rng.choice(len(KINDS), num_features, p=KIND_WEIGHTS)
    columns = [KINDS[kind](rng, hidden) for kind in kinds]
    features = np.stack([column.values for column in columns], axis=1)
    way, num_ways = _draw_ways(rng, num_rows, num_classes)
    for number in range(num_ways):
        apply_way(rng, features, columns, np.flatnonzero(way == number))
    derive(rng, features, columns)
    round_some(rng, features, columns)
    hide(rng, features, columns)
    labels = np.where(way < 0, 0, 1 + way % max(1, num_classes - 1))
    wrong = rng.random(num_rows) < rng.choice([0.0, 0.0, 0.01, 0.05])
    labels = np.where(wrong, rng.integers(0, num_classes, num_rows), labels)
    return features.astype(np.float32), rng.permutation(num_classes)[labels]


def _draw_ways(rng: Rng, num_rows: int, num_classes: int) -> tuple[Ints, int]:
    """The way of each row, -1 for an ordinary one, and how many ways there are."""
    num_ways = (num_classes - 1) * int(rng.integers(1, 6))
    ways = rng.choice(num_ways, num_rows, p=rng.dirichlet(np.full(num_ways, 2.0)))
    return np.where(rng.random(num_rows) < rng.uniform(0.06, 0.5), ways, -1), num_ways


def apply_way(rng: Rng, features: Values, columns: list[Column], rows: Ints) -> None:
    """Let one way do its work on its rows, in place."""
    most = min(len(columns), 9)
    used = rng.choice(len(columns), int(rng.integers(1, most + 1)), replace=False)
    share, strength = rng.uniform(0.5, 1), rng.lognormal(0.2, 0.6)
    for column in used:
        touched = rows[rng.random(len(rows)) < share]
        features[touched, column] = columns[column].touch(rng, features[touched, column], strength)


def derive(rng: Rng, features: Values, columns: list[Column]) -> None:
    """Some columns are sums, products or ratios of two others, in place: they carry what a way did to those."""
    numbers = [position for position, column in enumerate(columns) if not column.is_code]
    for position in numbers:
        if len(numbers) > 2 and rng.random() < 0.12:
            one, other = (features[:, source] for source in rng.choice(numbers, 2))
            noise = np.exp(rng.normal(0, rng.uniform(0, 0.4), len(features)))
            derived = (one * other, one / (1 + np.abs(other)), one + other)[rng.integers(3)]
            features[:, position] = np.clip(derived * noise, -1e6, 1e6)


def round_some(rng: Rng, features: Values, columns: list[Column]) -> None:
    for position, column in enumerate(columns):
        if not column.is_code and rng.random() < 0.6:
            features[:, position] = features[:, position].round(int(rng.integers(0, 4)))


def hide(rng: Rng, features: Values, columns: list[Column]) -> None:
    """Missing by chance, or because of what a code says, in place."""
    codes = [position for position, column in enumerate(columns) if column.is_code]
    some = rng.uniform(0, 0.5)
    original = features.copy()
    for position in range(len(columns)):
        if rng.random() < some:
            features[rng.random(len(features)) < rng.uniform(0, 0.12), position] = np.nan
            if codes and rng.random() < 0.5:
                code = original[:, rng.choice(codes)]
                said = rng.choice(np.unique(code))
                features[code == said if rng.random() < 0.5 else code != said, position] = np.nan


# --- kinds of columns ------------------------------------------------------------------------------------------------


def amount(rng: Rng, hidden: Hidden) -> Column:
    """Money, durations, volumes: log-normal, by group and size. A way multiplies it, or has its own."""
    level = rng.normal(0, rng.uniform(0.2, 1.5), hidden.group.max() + 1)[hidden.group]
    size = rng.uniform(0, 0.8) * hidden.size[:, rng.integers(3)]
    spread = rng.uniform(0.15, 0.9)
    values = np.exp(rng.normal(1, 1.5) + level + size + rng.normal(0, spread, len(level)))
    shift, own = rng.choice([-1.0, 1.0, 1.0]), rng.random() < 0.2

    def touch(rng: Rng, values: Values, strength: float) -> Values:
        if own:
            return np.exp(rng.normal(shift * strength, 0.5, len(values)))
        return values * np.exp(shift * rng.normal(strength, 0.5, len(values)))

    return Column(values, touch)


def count(rng: Rng, hidden: Hidden) -> Column:
    """Events in a window, mostly few. A way adds some."""
    busy = np.exp(rng.uniform(0, 0.9) * hidden.size[:, rng.integers(3)])
    values = rng.poisson(np.minimum(np.exp(rng.uniform(-3, 2.5)) * busy, 1e4)).astype(np.float64)
    more = np.exp(rng.uniform(-0.7, 1.5))
    return Column(values, lambda rng, values, strength: values + rng.poisson(more * strength, len(values)))


def gap(rng: Rng, hidden: Hidden) -> Column:
    """Time or distance since something: over many orders of magnitude. A way shortens or stretches it."""
    spread = rng.uniform(0.8, 2.2)
    size = rng.uniform(0, 0.7) * hidden.size[:, rng.integers(3)]
    values = np.exp(rng.normal(2, 2) + size + rng.normal(0, spread, len(size)))
    sign = rng.choice([-1.0, -1.0, 1.0])
    return Column(
        values,
        lambda rng, values, strength: values * np.exp(sign * spread * rng.normal(1.2 * strength, 0.7, len(values))),
    )


def clock(rng: Rng, hidden: Hidden) -> Column:
    """A time of day: a broad bump. A way has its own."""
    values = np.clip(rng.normal(rng.uniform(9, 18), rng.uniform(2, 6), len(hidden.group)), 0, 24)
    centre, width = rng.uniform(0, 24), rng.uniform(1, 6)
    return Column(values, lambda rng, values, _: rng.normal(centre, width, len(values)) % 24)


def rate(rng: Rng, hidden: Hidden) -> Column:
    """A share of something rare: mostly exactly zero. A way raises it."""
    seen = rng.random(len(hidden.group)) < rng.uniform(0.05, 0.6)
    values = np.where(seen, rng.beta(1, rng.uniform(5, 60), len(seen)), 0.0)
    other = rng.uniform(1.5, 12)
    return Column(values, lambda rng, values, _: np.maximum(values, rng.beta(1.5, other, len(values))))


def attribute(rng: Rng, hidden: Hidden) -> Column:
    """An age, a size, a temperature: a bell or a range, related to the rest or not. A way shifts it a little."""
    noise = rng.normal(size=len(hidden.group)) if rng.random() < 0.6 else rng.uniform(-1.7, 1.7, len(hidden.group))
    scale, centre = rng.lognormal(1, 1.5), rng.normal(0, 30)
    values = centre + scale * (noise + rng.uniform(0, 1) * hidden.size[:, rng.integers(3)])
    sign = rng.choice([-1.0, 1.0])
    return Column(values, lambda _, values, strength: values + sign * 0.6 * strength * scale)


def code(rng: Rng, hidden: Hidden) -> Column:
    """A category in codes without order, by group or not. A way prefers some."""
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
    """Yes or no, mostly one of them. A way says the other more often."""
    usual = rng.uniform(0.005, 0.4)
    values = (rng.random(len(hidden.group)) < usual).astype(np.float64)
    often = rng.uniform(usual, 1)
    return Column(values, lambda rng, values, _: (rng.random(len(values)) < often).astype(np.float64), is_code=True)


KINDS = (amount, count, gap, clock, rate, attribute, code, flag)
KIND_WEIGHTS = (0.19, 0.16, 0.12, 0.07, 0.08, 0.13, 0.17, 0.08)


def unequal_shares(rng: Rng, num_parts: int) -> Values:
    """Unequal parts of one."""
    return rng.dirichlet(np.full(num_parts, rng.choice([0.3, 0.8, 2.0])) + 1e-3)
