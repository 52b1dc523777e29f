"""Simulated card transactions: customers, terminals, habits, and the frauds that break them.

Customers have a home, a spending level, favourite merchant categories, hours and channels, and two kinds of card.
Terminals have a place, a merchant category and a price level. Legitimate transactions follow the habits; four kinds of
fraud break them, each only in part, so that no single column gives it away:

- *stolen card*: a burst on one card, larger amounts, unusual places and categories, for a day or two;
- *compromised terminal*: for a week, a share of the transactions at a terminal are fraudulent, amounts ordinary;
- *account takeover*: online purchases abroad at night from a device not seen before, over a few days;
- *testing*: a few tiny online amounts shortly before one large one.

The table holds what a scorer knows at the moment of the transaction: nothing looks into the future. Fraud reports
arrive `REPORT_DELAY_S` late, so the terminal's fraud rate lags as it does in life. About 0.5-1 % of rows are fraud.

Everything comes from one seed. `simulate` returns rows in time order; `split_by_time` cuts them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.windows import Past

DAY_S = 86_400
REPORT_DELAY_S = 3 * DAY_S
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
PRICE = np.array([3.2, 3.6, 3.3, 4.0, 5.0, 5.4, 2.9, 2.6, 5.5, 4.4])  # mean of log amount by category
REMOTE = np.array([0.05, 0.0, 0.1, 0.4, 0.5, 0.8, 0.1, 1.0, 0.2, 0.0])  # share bought online by category
COUNTRIES = ("DE", "FR", "NL", "IT", "PL", "US", "GB", "RO", "BR", "NG")
CHANNELS = ("chip", "contactless", "magstripe", "online")
NUMERIC = (
    "amount", "amount_to_usual", "hour", "weekday", "minutes_since_last", "count_1h", "count_24h", "amount_24h",
    "distance_km", "terminal_fraud_rate_7d", "terminal_count_24h", "customer_age_years", "account_age_days",
)  # fmt: skip
CATEGORICAL = ("merchant_category", "country", "channel", "card_type", "new_device")
FEATURES = (*NUMERIC, *CATEGORICAL)
TARGET = "is_fraud"


@dataclass(frozen=True)
class _Customers:
    home: NDArray[np.float64]  # [n, 2] kilometres
    country: NDArray[np.int64]
    log_spend: NDArray[np.float64]
    per_day: NDArray[np.float64]
    taste: NDArray[np.float64]  # [n, categories]
    usual_hour: NDArray[np.float64]
    online: NDArray[np.float64]
    age_years: NDArray[np.float64]
    opened_day: NDArray[np.float64]
    credit: NDArray[np.bool_]


@dataclass(frozen=True)
class _Terminals:
    place: NDArray[np.float64]  # [n, 2] kilometres
    country: NDArray[np.int64]
    category: NDArray[np.int64]
    log_price: NDArray[np.float64]


def simulate(seed: int, num_customers: int = 1_500, num_terminals: int = 400, num_days: int = 60) -> pd.DataFrame:
    """Transactions in time order: `FEATURES`, `TARGET` (0 or 1) and `time_s` (seconds since the first midnight)."""
    rng = np.random.default_rng(seed)
    customers, terminals = _draw_customers(rng, num_customers), _draw_terminals(rng, num_terminals)
    legitimate = _legitimate(rng, customers, terminals, num_days)
    frauds = _frauds(rng, customers, terminals, legitimate, num_days)
    rows = pd.concat([legitimate, *frauds], ignore_index=True)
    rows = rows.sort_values("time_s", kind="stable", ignore_index=True)
    return _observe(rng, rows, customers, terminals)


def split_by_time(rows: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The earlier `share` of the rows whose outcome was reported before the rest began, and the rest."""
    boundary = rows["time_s"].quantile(share)
    known = rows["time_s"] < boundary - REPORT_DELAY_S
    return rows[known].reset_index(drop=True), rows[rows["time_s"] >= boundary].reset_index(drop=True)


def sample_context(rows: pd.DataFrame, num_rows: int, fraud_share: float, seed: int) -> pd.DataFrame:
    """A context with enough fraud in it: the newest frauds, and legitimate rows at random, shuffled."""
    num_frauds = min(int(num_rows * fraud_share), int(rows[TARGET].sum()))
    frauds = rows[rows[TARGET] == 1].tail(num_frauds)
    others = rows[rows[TARGET] == 0].sample(num_rows - num_frauds, random_state=seed)
    return pd.concat([frauds, others]).sample(frac=1, random_state=seed).reset_index(drop=True)


def _draw_customers(rng: np.random.Generator, n: int) -> _Customers:
    return _Customers(
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


def _draw_terminals(rng: np.random.Generator, n: int) -> _Terminals:
    category = rng.choice(len(CATEGORIES), n, p=[0.2, 0.1, 0.18, 0.13, 0.08, 0.06, 0.07, 0.1, 0.03, 0.05])
    return _Terminals(
        place=rng.normal(0, 70, (n, 2)),
        country=rng.choice(len(COUNTRIES), n, p=[0.4, 0.15, 0.1, 0.09, 0.07, 0.06, 0.06, 0.03, 0.02, 0.02]),
        category=category,
        log_price=PRICE[category] + rng.normal(0, 0.3, n),
    )


def _frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns)


def _legitimate(rng: np.random.Generator, c: _Customers, t: _Terminals, num_days: int) -> pd.DataFrame:
    counts = rng.poisson(c.per_day * num_days)
    who = np.repeat(np.arange(len(counts)), counts)
    n = len(who)
    category = (rng.random(n)[:, None] > c.taste[who].cumsum(axis=1)).sum(axis=1).clip(0, len(CATEGORIES) - 1)
    hour = np.clip(c.usual_hour[who] + rng.normal(0, 3.2, n), 0, 23.99)
    online = rng.random(n) < 0.15 * c.online[who] + REMOTE[category] * (0.5 + c.online[who] / 2)
    abroad = rng.random(n) < np.where(category == CATEGORIES.index("travel"), 0.35, 0.02)
    terminal = _choose_terminals(rng, c.home[who], category, t)
    country = np.where(abroad, rng.integers(0, len(COUNTRIES), n), c.country[who])
    return _frame(
        customer=who,
        terminal=terminal,
        time_s=rng.integers(0, num_days, n) * DAY_S + hour * 3_600 + rng.uniform(0, 60, n),
        amount=np.exp(c.log_spend[who] + t.log_price[terminal] + rng.normal(0, 0.55, n)),
        country=country,
        travelled_km=np.where(abroad, rng.gamma(3, 400, n), 0.0),
        channel=np.where(online, 3, rng.choice(3, n, p=[0.4, 0.57, 0.03])),
        new_device=online & (rng.random(n) < 0.06),
        is_fraud=0,
    )


def _choose_terminals(
    rng: np.random.Generator, homes: NDArray[np.float64], category: NDArray[np.int64], t: _Terminals
) -> NDArray[np.int64]:
    """Of five random terminals of the category, the nearest to home."""
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


def _frauds(
    rng: np.random.Generator, c: _Customers, t: _Terminals, legitimate: pd.DataFrame, num_days: int
) -> list[pd.DataFrame]:
    scale = len(legitimate) / 1_000
    return [
        _stolen(rng, c, t, num_days, int(0.55 * scale) + 1),
        _compromised(rng, t, legitimate, num_days, max(2, int(0.09 * scale))),
        _takeover(rng, c, t, num_days, int(0.4 * scale) + 1),
        _testing(rng, c, t, num_days, int(0.3 * scale) + 1),
    ]


def _episodes(
    rng: np.random.Generator, c: _Customers, num_days: int, count: int, mean_size: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Victim of each row, its place in the episode, and the episode's start in seconds."""
    sizes = 1 + rng.poisson(mean_size - 1, count)
    victims = np.repeat(rng.integers(0, len(c.country), count), sizes)
    starts = np.repeat(rng.uniform(0, num_days - 2, count) * DAY_S, sizes)
    order = np.concatenate([np.arange(size) for size in sizes])
    return victims, order, starts


def _stolen(rng: np.random.Generator, c: _Customers, t: _Terminals, num_days: int, count: int) -> pd.DataFrame:
    who, order, start = _episodes(rng, c, num_days, count, 4)
    n = len(who)
    worth_stealing = np.array(
        [CATEGORIES.index(name) for name in ("electronics", "jewellery", "clothing", "cash", "fuel")]
    )
    category = rng.choice(worth_stealing, n, p=[0.35, 0.15, 0.2, 0.2, 0.1])
    terminal = _choose_terminals(rng, c.home[who] + rng.normal(0, 90, (n, 2)), category, t)
    return _frame(
        customer=who,
        terminal=terminal,
        time_s=start + order * rng.exponential(5_000, n),
        amount=np.exp(c.log_spend[who] + t.log_price[terminal] + rng.normal(0.7, 0.6, n)),
        country=np.where(rng.random(n) < 0.25, rng.integers(0, len(COUNTRIES), n), c.country[who]),
        travelled_km=rng.gamma(1.5, 60, n),
        channel=rng.choice(4, n, p=[0.25, 0.35, 0.25, 0.15]),
        new_device=rng.random(n) < 0.15,
        is_fraud=1,
    )


def _compromised(
    rng: np.random.Generator, t: _Terminals, legitimate: pd.DataFrame, num_days: int, count: int
) -> pd.DataFrame:
    """A share of what passes through the terminal is copied: same place and category, new time and amount."""
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


def _takeover(rng: np.random.Generator, c: _Customers, t: _Terminals, num_days: int, count: int) -> pd.DataFrame:
    who, order, start = _episodes(rng, c, num_days, count, 3)
    n = len(who)
    category = rng.choice([CATEGORIES.index(name) for name in ("digital", "electronics", "travel")], n)
    terminal = _choose_terminals(rng, c.home[who], category, t)
    night = np.floor(start / DAY_S) * DAY_S + rng.normal(2.5, 2.0, n).clip(0, 23) * 3_600
    return _frame(
        customer=who,
        terminal=terminal,
        time_s=night + order * rng.exponential(3_000, n),
        amount=np.exp(c.log_spend[who] + t.log_price[terminal] + rng.normal(0.3, 0.6, n)),
        country=np.where(rng.random(n) < 0.6, rng.integers(5, len(COUNTRIES), n), c.country[who]),
        travelled_km=0.0,
        channel=3,
        new_device=rng.random(n) < 0.75,
        is_fraud=1,
    )


def _testing(rng: np.random.Generator, c: _Customers, t: _Terminals, num_days: int, count: int) -> pd.DataFrame:
    who, order, start = _episodes(rng, c, num_days, count, 4)
    n = len(who)
    last = np.append(order[1:] == 0, True)
    category = np.where(last, CATEGORIES.index("electronics"), CATEGORIES.index("digital"))
    terminal = _choose_terminals(rng, c.home[who], category, t)
    small = np.exp(rng.normal(0.4, 0.5, n))
    large = np.exp(c.log_spend[who] + t.log_price[terminal] + rng.normal(0.6, 0.4, n))
    return _frame(
        customer=who,
        terminal=terminal,
        time_s=start + order * rng.uniform(60, 900, n),
        amount=np.where(last, large, small),
        country=np.where(rng.random(n) < 0.35, rng.integers(0, len(COUNTRIES), n), c.country[who]),
        travelled_km=0.0,
        channel=3,
        new_device=rng.random(n) < 0.5,
        is_fraud=1,
    )


def _observe(rng: np.random.Generator, rows: pd.DataFrame, c: _Customers, t: _Terminals) -> pd.DataFrame:
    """What the scorer sees of each transaction, from the past alone."""
    who, terminal = rows["customer"].to_numpy(), rows["terminal"].to_numpy()
    time_s, amount = rows["time_s"].to_numpy(), rows["amount"].to_numpy()
    by_customer, by_terminal = Past(who, time_s), Past(terminal, time_s)
    reported = by_terminal.reported(7 * DAY_S, REPORT_DELAY_S, rows[TARGET].to_numpy() == 1)
    online = rows["channel"].to_numpy() == CHANNELS.index("online")
    distance = np.linalg.norm(t.place[terminal] - c.home[who], axis=1) + rows["travelled_km"].to_numpy()
    usual = np.exp(c.log_spend[who] + PRICE[t.category[terminal]] + rng.normal(0, 0.15, len(rows)))
    seen = pd.DataFrame(
        {
            "time_s": time_s,
            "amount": amount.round(2),
            "amount_to_usual": (amount / usual).round(3),
            "hour": np.floor(time_s % DAY_S / 36) / 100,
            "weekday": (time_s // DAY_S % 7).astype(float),
            "minutes_since_last": (by_customer.since_last() / 60).round(1),
            "count_1h": by_customer.total(3_600),
            "count_24h": by_customer.total(DAY_S),
            "amount_24h": by_customer.total(DAY_S, amount).round(2),
            # an online purchase has no place, and some terminals do not report theirs
            "distance_km": np.where(online | (rng.random(len(rows)) < 0.05), np.nan, distance.round(1)),
            "terminal_fraud_rate_7d": reported.round(4),
            "terminal_count_24h": by_terminal.total(DAY_S),
            "customer_age_years": np.where(rng.random(len(rows)) < 0.03, np.nan, c.age_years[who].round()),
            "account_age_days": (time_s / DAY_S - c.opened_day[who]).round(),
            "merchant_category": np.array(CATEGORIES, object)[t.category[terminal]],
            "country": np.array(COUNTRIES, object)[rows["country"].to_numpy()],
            "channel": np.array(CHANNELS, object)[rows["channel"].to_numpy()],
            "card_type": np.where(c.credit[who], "credit", "debit").astype(object),
            "new_device": _device(rng, rows["new_device"].to_numpy(bool), online),
            TARGET: rows[TARGET].to_numpy(),
        }
    )
    return seen[["time_s", *FEATURES, TARGET]]


def _device(rng: np.random.Generator, new: NDArray[np.bool_], online: NDArray[np.bool_]) -> NDArray[np.object_]:
    """ "yes" or "no" for online purchases (some hide it), nothing at a terminal."""
    answer = np.where(new, "yes", "no").astype(object)
    answer[~online | (rng.random(len(new)) < 0.08)] = None
    return answer
