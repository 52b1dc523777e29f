"""The accounts, the shops and the ordinary payments of a random design."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.prior.draws import Ints, Rng, Values, unequal_shares

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Accounts:
    """The payers. Arrays are [accounts], unless said otherwise."""

    place: Values  # [accounts, 2]
    country: Ints
    level: Values  # of the logarithm of amounts, over the price of the shop
    taste: Values  # [accounts, trades], cumulative shares of trades
    hour: Values  # the usual time of day
    remote: Values  # how readily the account pays remotely, 0 to 1
    age: Values
    opened: Values  # in days, negative: before the first payment


@dataclass(frozen=True)
class Shops:
    """The payees. Arrays are [shops], unless said otherwise."""

    place: Values  # [shops, 2]
    country: Ints
    trade: Ints
    price: Values  # of the logarithm of amounts


@dataclass(frozen=True)
class World:
    """One design: what all of its payments have in common."""

    accounts: Accounts
    shops: Shops
    price: Values  # [trades], of the logarithm of amounts
    remote: Values  # [trades], share paid remotely
    num_countries: int
    channels: Values  # shares of the channels in a shop; the number after the last is the remote channel
    num_days: float
    spread: float  # of the logarithm of amounts
    hours: float  # spread of the time of day
    new_device: float  # share of ordinary payments from a new device
    nearest_of: int  # shops that an account chooses the nearest of


@dataclass(frozen=True)
class Payments:
    """Payments, in any order. Arrays are [payments]."""

    account: Ints
    shop: Ints
    time: Values  # in days
    amount: Values
    country: Ints
    away: Values  # added to the distance between home and shop
    channel: Ints
    new_device: Flags
    scheme: Ints  # -1 for an ordinary payment


def draw_world(rng: Rng, num_payments: int) -> World:
    """Draw a design for about this many payments."""
    num_trades, num_countries = int(rng.integers(4, 16)), int(rng.integers(2, 13))
    num_accounts = int(np.exp(rng.uniform(np.log(30), np.log(max(60, num_payments)))))
    num_shops = int(np.exp(rng.uniform(np.log(15), np.log(max(30, num_payments // 4)))))
    price = rng.normal(rng.uniform(2, 5), rng.uniform(0.3, 1.3), num_trades)
    trade = rng.choice(num_trades, num_shops, p=unequal_shares(rng, num_trades))
    taste = rng.dirichlet(rng.uniform(1, 20) * unequal_shares(rng, num_trades) + 0.05, num_accounts)
    size = rng.lognormal(0, 0.5)
    return World(
        accounts=Accounts(
            place=rng.normal(size=(num_accounts, 2)),
            country=rng.choice(num_countries, num_accounts, p=_descending(rng, num_countries)),
            level=rng.normal(0, rng.uniform(0.1, 0.9), num_accounts),
            taste=taste.cumsum(axis=1),
            hour=rng.normal(rng.uniform(10, 18), rng.uniform(0.5, 4), num_accounts),
            remote=rng.beta(*rng.uniform(1, 4, 2), num_accounts),
            age=np.clip(rng.normal(rng.uniform(30, 55), rng.uniform(8, 20), num_accounts), 18, 95),
            opened=-rng.exponential(rng.uniform(200, 2_000), num_accounts),
        ),
        shops=Shops(
            place=rng.normal(size=(num_shops, 2)) * size,
            country=rng.choice(num_countries, num_shops, p=_descending(rng, num_countries)),
            trade=trade,
            price=price[trade] + rng.normal(0, rng.uniform(0.05, 0.6), num_shops),
        ),
        price=price,
        remote=np.clip(rng.beta(0.5, 1, num_trades) * rng.uniform(0.2, 1.2), 0, 1),
        num_countries=num_countries,
        channels=unequal_shares(rng, int(rng.integers(2, 5))),
        num_days=float(rng.uniform(10, 120)),
        spread=rng.uniform(0.2, 0.9),
        hours=rng.uniform(1.5, 5),
        new_device=rng.uniform(0.01, 0.2),
        nearest_of=int(rng.integers(1, 8)),
    )


def _descending(rng: Rng, num_parts: int) -> Values:
    return np.sort(unequal_shares(rng, num_parts))[::-1]


def draw_ordinary(rng: Rng, world: World, size: int) -> Payments:
    """Draw `size` payments that follow the habits of the accounts."""
    accounts = world.accounts
    activity = rng.gamma(rng.choice([0.5, 1.0, 2.0, 8.0]), size=len(accounts.age)) + 1e-6
    account = rng.choice(len(accounts.age), size, p=activity / activity.sum())
    trade = (rng.random(size)[:, None] > accounts.taste[account]).sum(axis=1).clip(0, len(world.price) - 1)
    shop = nearest_shop(rng, world, accounts.place[account], trade)
    hour = np.clip(accounts.hour[account] + rng.normal(0, world.hours, size), 0, 23.99)
    abroad = rng.random(size) < rng.uniform(0, 0.08)
    remote = rng.random(size) < world.remote[trade] * (0.5 + accounts.remote[account]) + rng.uniform(0, 0.1)
    return Payments(
        account=account,
        shop=shop,
        time=np.floor(rng.uniform(0, world.num_days, size)) + hour / 24,
        amount=np.exp(accounts.level[account] + world.shops.price[shop] + rng.normal(0, world.spread, size)),
        country=np.where(abroad, rng.integers(0, world.num_countries, size), accounts.country[account]),
        away=np.where(abroad, rng.gamma(2, 4, size), 0.0),
        channel=np.where(remote, len(world.channels), rng.choice(len(world.channels), size, p=world.channels)),
        new_device=rng.random(size) < world.new_device,
        scheme=np.full(size, -1),
    )


def nearest_shop(rng: Rng, world: World, home: Values, trade: Ints) -> Ints:
    """For each home [n, 2] the nearest of a few shops of the trade [n]."""
    shop = np.zeros(len(home), np.int64)
    for number in np.unique(trade):
        mask = trade == number
        of_trade = np.flatnonzero(world.shops.trade == number)
        options = rng.choice(of_trade if len(of_trade) else len(world.shops.trade), (int(mask.sum()), world.nearest_of))
        distance = np.linalg.norm(world.shops.place[options] - home[mask][:, None], axis=2)
        shop[mask] = options[np.arange(len(options)), distance.argmin(axis=1)]
    return shop
