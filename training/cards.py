"""Simulated card transactions: customers, terminals, habits, and frauds that break the habits.

Customers have a home, a spending level, favourite merchant categories, hours and channels, and two kinds of card.
Terminals have a place, a merchant category and a price level (`card_world.py`). Legitimate transactions follow the
habits. Four kinds of fraud break them (`card_frauds.py`), each only in part, so that no single column gives it away:

- *stolen card*: for a day or two a burst on one card, with larger amounts, unusual places and categories;
- *compromised terminal*: for a week a share of the transactions at a terminal, with ordinary amounts;
- *account takeover*: over a few days online purchases abroad, at night, from a new device;
- *testing*: a few tiny online amounts shortly before one large one.

The table holds what a scorer knows at the time of the transaction; no column looks into the future. Fraud reports
arrive `REPORT_DELAY_S` late, so the fraud rate of a terminal lags as in practice. About 0.5 to 1 % of rows are fraud.

A seed fixes all draws.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.card_frauds import draw_frauds
from training.card_world import (
    CATEGORIES,
    CHANNELS,
    COUNTRIES,
    DAY_S,
    PRICE,
    Customers,
    Flags,
    Rng,
    Terminals,
    draw_customers,
    draw_legitimate,
    draw_terminals,
)
from training.windows import Past

REPORT_DELAY_S = 3 * DAY_S
NUMERIC = (
    "amount", "amount_to_usual", "hour", "weekday", "minutes_since_last", "count_1h", "count_24h", "amount_24h",
    "distance_km", "terminal_fraud_rate_7d", "terminal_count_24h", "customer_age_years", "account_age_days",
)  # fmt: skip
CATEGORICAL = ("merchant_category", "country", "channel", "card_type", "new_device")
FEATURES = (*NUMERIC, *CATEGORICAL)
TARGET = "is_fraud"


def simulate(seed: int, num_customers: int = 1_500, num_terminals: int = 400, num_days: int = 60) -> pd.DataFrame:
    """Transactions in order of time: `time_s` (seconds since the first midnight), `FEATURES` and `TARGET` (0 or 1)."""
    rng = np.random.default_rng(seed)
    customers, terminals = draw_customers(rng, num_customers), draw_terminals(rng, num_terminals)
    legitimate = draw_legitimate(rng, customers, terminals, num_days)
    frauds = draw_frauds(rng, customers, terminals, legitimate, num_days)
    rows = pd.concat([legitimate, *frauds], ignore_index=True)
    rows = rows.sort_values("time_s", kind="stable", ignore_index=True)
    return _observe(rng, rows, customers, terminals)


def split_by_time(rows: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The earlier `share` of the rows, without those not yet reported when the rest begins, and the rest."""
    boundary = rows["time_s"].quantile(share)
    known = rows["time_s"] < boundary - REPORT_DELAY_S
    return rows[known].reset_index(drop=True), rows[rows["time_s"] >= boundary].reset_index(drop=True)


def sample_context(rows: pd.DataFrame, num_rows: int, fraud_share: float, seed: int) -> pd.DataFrame:
    """A context in random order: the newest frauds, up to `fraud_share` of it, and random legitimate rows."""
    num_frauds = min(int(num_rows * fraud_share), int(rows[TARGET].sum()))
    frauds = rows[rows[TARGET] == 1].tail(num_frauds)
    others = rows[rows[TARGET] == 0].sample(num_rows - num_frauds, random_state=seed)
    return pd.concat([frauds, others]).sample(frac=1, random_state=seed).reset_index(drop=True)


def _observe(rng: Rng, rows: pd.DataFrame, c: Customers, t: Terminals) -> pd.DataFrame:
    """The columns that a scorer has at the time of each transaction."""
    customer, terminal = rows["customer"].to_numpy(), rows["terminal"].to_numpy()
    time_s, amount = rows["time_s"].to_numpy(), rows["amount"].to_numpy()
    by_customer, by_terminal = Past(customer, time_s), Past(terminal, time_s)
    reported = by_terminal.reported(7 * DAY_S, REPORT_DELAY_S, rows[TARGET].to_numpy() == 1)
    online = rows["channel"].to_numpy() == CHANNELS.index("online")
    distance = np.linalg.norm(t.place[terminal] - c.home[customer], axis=1) + rows["travelled_km"].to_numpy()
    usual = np.exp(c.log_spend[customer] + PRICE[t.category[terminal]] + rng.normal(0, 0.15, len(rows)))
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
            # an online purchase has no place, and some terminals report none
            "distance_km": np.where(online | (rng.random(len(rows)) < 0.05), np.nan, distance.round(1)),
            "terminal_fraud_rate_7d": reported.round(4),
            "terminal_count_24h": by_terminal.total(DAY_S),
            "customer_age_years": np.where(rng.random(len(rows)) < 0.03, np.nan, c.age_years[customer].round()),
            "account_age_days": (time_s / DAY_S - c.opened_day[customer]).round(),
            "merchant_category": np.array(CATEGORIES, object)[t.category[terminal]],
            "country": np.array(COUNTRIES, object)[rows["country"].to_numpy()],
            "channel": np.array(CHANNELS, object)[rows["channel"].to_numpy()],
            "card_type": np.where(c.credit[customer], "credit", "debit").astype(object),
            "new_device": _device(rng, rows["new_device"].to_numpy(bool), online),
            TARGET: rows[TARGET].to_numpy(),
        }
    )
    return seen[["time_s", *FEATURES, TARGET]]


def _device(rng: Rng, new: Flags, online: Flags) -> NDArray[np.object_]:
    """Whether the device is new: yes or no for online purchases, of which some hide it; None at a terminal."""
    answer = np.where(new, "yes", "no").astype(object)
    answer[~online | (rng.random(len(new)) < 0.08)] = None
    return answer
