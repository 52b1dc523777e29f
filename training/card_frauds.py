"""Four kinds of fraud on the simulated cards (`cards.py`). Each breaks a customer's habits only in part."""

from __future__ import annotations

import numpy as np
import pandas as pd

from training.card_world import (
    CATEGORIES,
    COUNTRIES,
    DAY_S,
    Customers,
    Ints,
    Rng,
    Terminals,
    Values,
    choose_terminals,
    frame,
)


def draw_frauds(rng: Rng, c: Customers, t: Terminals, legitimate: pd.DataFrame, num_days: int) -> list[pd.DataFrame]:
    """Draw frauds of each kind, with the columns of `draw_legitimate`; their number follows that of `legitimate`."""
    scale = len(legitimate) / 1_000
    return [
        _stolen(rng, c, t, num_days, int(0.55 * scale) + 1),
        _compromised(rng, t, legitimate, num_days, max(2, int(0.09 * scale))),
        _takeover(rng, c, t, num_days, int(0.4 * scale) + 1),
        _testing(rng, c, t, num_days, int(0.3 * scale) + 1),
    ]


def _episodes(rng: Rng, c: Customers, num_days: int, count: int, mean_size: float) -> tuple[Ints, Ints, Values]:
    """The victim of each row, its position in its episode, and the start of the episode in seconds."""
    sizes = 1 + rng.poisson(mean_size - 1, count)
    victims = np.repeat(rng.integers(0, len(c.country), count), sizes)
    starts = np.repeat(rng.uniform(0, num_days - 2, count) * DAY_S, sizes)
    order = np.concatenate([np.arange(size) for size in sizes])
    return victims, order, starts


def _stolen(rng: Rng, c: Customers, t: Terminals, num_days: int, count: int) -> pd.DataFrame:
    customer, order, start = _episodes(rng, c, num_days, count, 4)
    n = len(customer)
    worth_stealing = np.array(
        [CATEGORIES.index(name) for name in ("electronics", "jewellery", "clothing", "cash", "fuel")]
    )
    category = rng.choice(worth_stealing, n, p=[0.35, 0.15, 0.2, 0.2, 0.1])
    terminal = choose_terminals(rng, c.home[customer] + rng.normal(0, 90, (n, 2)), category, t)
    return frame(
        customer=customer,
        terminal=terminal,
        time_s=start + order * rng.exponential(5_000, n),
        amount=np.exp(c.log_spend[customer] + t.log_price[terminal] + rng.normal(0.7, 0.6, n)),
        country=np.where(rng.random(n) < 0.25, rng.integers(0, len(COUNTRIES), n), c.country[customer]),
        travelled_km=rng.gamma(1.5, 60, n),
        channel=rng.choice(4, n, p=[0.25, 0.35, 0.25, 0.15]),
        new_device=rng.random(n) < 0.15,
        is_fraud=1,
    )


def _compromised(rng: Rng, t: Terminals, legitimate: pd.DataFrame, num_days: int, count: int) -> pd.DataFrame:
    """Copies of half of the transactions at a terminal: same place and category, other time and amount."""
    copies = []
    for terminal in rng.choice(len(t.category), count, replace=False):
        start = rng.uniform(0, num_days - 7) * DAY_S
        inside = legitimate[
            (legitimate["terminal"] == terminal) & legitimate["time_s"].between(start, start + 7 * DAY_S)
        ]
        copies.append(inside.sample(frac=0.5, random_state=int(rng.integers(2**31))))
    rows = pd.concat(copies).copy()
    n = len(rows)
    rows["time_s"] += rng.uniform(600, 0.5 * DAY_S, n)
    rows["amount"] *= np.exp(rng.normal(0.2, 0.5, n))
    rows["channel"] = np.where(rng.random(n) < 0.45, 2, rows["channel"])
    rows["is_fraud"] = 1
    return rows


def _takeover(rng: Rng, c: Customers, t: Terminals, num_days: int, count: int) -> pd.DataFrame:
    customer, order, start = _episodes(rng, c, num_days, count, 3)
    n = len(customer)
    category = rng.choice([CATEGORIES.index(name) for name in ("digital", "electronics", "travel")], n)
    terminal = choose_terminals(rng, c.home[customer], category, t)
    night = np.floor(start / DAY_S) * DAY_S + rng.normal(2.5, 2.0, n).clip(0, 23) * 3_600
    return frame(
        customer=customer,
        terminal=terminal,
        time_s=night + order * rng.exponential(3_000, n),
        amount=np.exp(c.log_spend[customer] + t.log_price[terminal] + rng.normal(0.3, 0.6, n)),
        country=np.where(rng.random(n) < 0.6, rng.integers(5, len(COUNTRIES), n), c.country[customer]),
        travelled_km=0.0,
        channel=3,
        new_device=rng.random(n) < 0.75,
        is_fraud=1,
    )


def _testing(rng: Rng, c: Customers, t: Terminals, num_days: int, count: int) -> pd.DataFrame:
    customer, order, start = _episodes(rng, c, num_days, count, 4)
    n = len(customer)
    last = np.append(order[1:] == 0, True)
    category = np.where(last, CATEGORIES.index("electronics"), CATEGORIES.index("digital"))
    terminal = choose_terminals(rng, c.home[customer], category, t)
    small = np.exp(rng.normal(0.4, 0.5, n))
    large = np.exp(c.log_spend[customer] + t.log_price[terminal] + rng.normal(0.6, 0.4, n))
    return frame(
        customer=customer,
        terminal=terminal,
        time_s=start + order * rng.uniform(60, 900, n),
        amount=np.where(last, large, small),
        country=np.where(rng.random(n) < 0.35, rng.integers(0, len(COUNTRIES), n), c.country[customer]),
        travelled_km=0.0,
        channel=3,
        new_device=rng.random(n) < 0.5,
        is_fraud=1,
    )
