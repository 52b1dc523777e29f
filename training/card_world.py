"""Customers, terminals and legitimate transactions of the simulated cards (`cards.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Rng = np.random.Generator
Ints = NDArray[np.int64]
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

DAY_S = 86_400
CATEGORIES = (
    "grocery",
    "fuel",
    "restaurant",
    "clothing",
    "electronics",
    "travel",
    "pharmacy",
    "digital",
    "jewellery",
    "cash",
)
PRICE = np.array([3.2, 3.6, 3.3, 4.0, 5.0, 5.4, 2.9, 2.6, 5.5, 4.4])  # mean of the log amount by category
REMOTE = np.array([0.05, 0.0, 0.1, 0.4, 0.5, 0.8, 0.1, 1.0, 0.2, 0.0])  # share bought online by category
COUNTRIES = ("DE", "FR", "NL", "IT", "PL", "US", "GB", "RO", "BR", "NG")
CHANNELS = ("chip", "contactless", "magstripe", "online")


@dataclass(frozen=True)
class Customers:
    """The card holders. Arrays are [customers], unless said otherwise."""

    home: Values  # [customers, 2], in kilometres
    country: Ints  # position in `COUNTRIES`
    log_spend: Values  # added to the logarithm of the terminal's price
    per_day: Values  # mean number of transactions
    taste: Values  # [customers, categories], shares
    usual_hour: Values
    online: Values  # how readily the customer buys online, 0 to 1
    age_years: Values
    opened_day: Values  # negative: before the first day
    credit: Flags  # a credit card, not a debit card


@dataclass(frozen=True)
class Terminals:
    """Where cards are used. Arrays are [terminals], unless said otherwise."""

    place: Values  # [terminals, 2], in kilometres
    country: Ints  # position in `COUNTRIES`
    category: Ints  # position in `CATEGORIES`
    log_price: Values  # mean of the logarithm of amounts


def draw_customers(rng: Rng, n: int) -> Customers:
    """Draw `n` customers with their habits."""
    return Customers(
        home=rng.normal(0, 60, (n, 2)),
        country=rng.choice(5, n, p=[0.5, 0.2, 0.12, 0.1, 0.08]),
        log_spend=rng.normal(0, 0.5, n),
        per_day=rng.gamma(2.0, 0.35, n),
        taste=rng.dirichlet(np.array([4, 2, 3, 1.5, 0.8, 0.4, 1, 2, 0.15, 0.8]), n),
        usual_hour=rng.normal(14, 3, n),
        online=rng.beta(2, 3, n),
        age_years=np.clip(rng.normal(44, 16, n), 18, 92),
        opened_day=-rng.exponential(900, n),
        credit=rng.random(n) < 0.45,
    )


def draw_terminals(rng: Rng, n: int) -> Terminals:
    """Draw `n` terminals."""
    category = rng.choice(len(CATEGORIES), n, p=[0.2, 0.1, 0.18, 0.13, 0.08, 0.06, 0.07, 0.1, 0.03, 0.05])
    return Terminals(
        place=rng.normal(0, 70, (n, 2)),
        country=rng.choice(len(COUNTRIES), n, p=[0.4, 0.15, 0.1, 0.09, 0.07, 0.06, 0.06, 0.03, 0.02, 0.02]),
        category=category,
        log_price=PRICE[category] + rng.normal(0, 0.3, n),
    )


def frame(**columns: object) -> pd.DataFrame:
    """A table of these columns; a single value fills its column."""
    return pd.DataFrame(columns)


def draw_legitimate(rng: Rng, c: Customers, t: Terminals, num_days: int) -> pd.DataFrame:
    """Draw the transactions of all customers by their habits, in any order."""
    counts = rng.poisson(c.per_day * num_days)
    customer = np.repeat(np.arange(len(counts)), counts)
    n = len(customer)
    category = (rng.random(n)[:, None] > c.taste[customer].cumsum(axis=1)).sum(axis=1).clip(0, len(CATEGORIES) - 1)
    hour = np.clip(c.usual_hour[customer] + rng.normal(0, 3.2, n), 0, 23.99)
    online = rng.random(n) < 0.15 * c.online[customer] + REMOTE[category] * (0.5 + c.online[customer] / 2)
    abroad = rng.random(n) < np.where(category == CATEGORIES.index("travel"), 0.35, 0.02)
    terminal = choose_terminals(rng, c.home[customer], category, t)
    country = np.where(abroad, rng.integers(0, len(COUNTRIES), n), c.country[customer])
    return frame(
        customer=customer,
        terminal=terminal,
        time_s=rng.integers(0, num_days, n) * DAY_S + hour * 3_600 + rng.uniform(0, 60, n),
        amount=np.exp(c.log_spend[customer] + t.log_price[terminal] + rng.normal(0, 0.55, n)),
        country=country,
        travelled_km=np.where(abroad, rng.gamma(3, 400, n), 0.0),
        channel=np.where(online, 3, rng.choice(3, n, p=[0.4, 0.57, 0.03])),
        new_device=online & (rng.random(n) < 0.06),
        is_fraud=0,
    )


def choose_terminals(rng: Rng, homes: Values, category: Ints, t: Terminals) -> Ints:
    """For each home [n, 2] the nearest of five random terminals of the category [n]."""
    chosen = np.zeros(len(homes), np.int64)
    for number in range(len(CATEGORIES)):
        mask = category == number
        of_category = np.flatnonzero(t.category == number)
        if not len(of_category):
            of_category = np.arange(len(t.category))
        options = rng.choice(of_category, (int(mask.sum()), 5))
        distance = np.linalg.norm(t.place[options] - homes[mask][:, None], axis=2)
        chosen[mask] = options[np.arange(len(options)), distance.argmin(axis=1)]
    return chosen
