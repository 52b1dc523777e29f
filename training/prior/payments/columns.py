"""The columns that a scorer of payments has."""

from __future__ import annotations

import numpy as np

from training.prior.columns import Column, plain
from training.prior.draws import Rng
from training.prior.payments.world import Flags, Payments, World
from training.windows import Past


def observe(rng: Rng, world: World, seen: Payments, is_fraud: Flags) -> list[Column]:
    """Every column that a scorer of payments may have, as known at the time of each payment.

    Windows and delays are drawn. Fraud is known only after the delay.
    """
    accounts, shops = world.accounts, world.shops
    by_account, by_shop = Past(seen.account, seen.time), Past(seen.shop, seen.time)
    remote = seen.channel == len(world.channels)
    trade = shops.trade[seen.shop]
    usual = np.exp(
        accounts.level[seen.account] + world.price[trade] + rng.normal(0, rng.uniform(0.05, 0.4), len(trade))
    )
    distance = np.linalg.norm(shops.place[seen.shop] - accounts.place[seen.account], axis=1) + seen.away
    distance = distance * rng.lognormal(4, 1)
    distance[(remote & (rng.random() < 0.8)) | (rng.random(len(distance)) < rng.uniform(0, 0.1))] = np.nan
    age = np.where(rng.random(len(trade)) < rng.uniform(0, 0.1), np.nan, accounts.age[seen.account].round())
    device = seen.new_device.astype(np.float64)
    device[(~remote & (rng.random() < 0.8)) | (rng.random(len(device)) < rng.uniform(0, 0.15))] = np.nan
    hour, day = 1 / 24, 1.0
    short, long = hour * rng.uniform(0.2, 6), day * rng.uniform(0.5, 7)
    past, delay = day * rng.uniform(3, 14), day * rng.uniform(0, 5)
    kind = rng.integers(0, int(rng.integers(2, 5)), len(accounts.age))
    numbers = [
        seen.amount.round(2),
        (seen.amount / usual).round(3),
        (seen.time % 1 * 24).round(2),
        np.floor(seen.time) % 7,
        (by_account.since_last() * rng.choice([24.0, 1_440.0])).round(1),
        by_account.total(short),
        by_account.total(long),
        by_account.total(long, seen.amount).round(2),
        distance.round(1),
        by_shop.reported(past, delay, is_fraud).round(4),
        by_shop.total(long),
        by_shop.since_last(),
        age,
        (seen.time - accounts.opened[seen.account]).round(),
        shops.price[seen.shop].round(2),
        rng.normal(size=len(trade)).round(2),
    ]
    codes = [
        trade, seen.country, seen.channel, kind[seen.account], shops.country[seen.shop],
        (seen.country != accounts.country[seen.account]).astype(np.int64),
    ]  # fmt: skip
    columns = [plain(values) for values in numbers]
    for code in codes:
        names = rng.permutation(int(code.max()) + 1)
        columns.append(plain(names[code].astype(np.float64), is_code=True))
    columns.append(plain(device, is_code=True))
    return columns
