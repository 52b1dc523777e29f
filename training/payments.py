"""Payments of random design: a mechanism of the prior (`prior.py`) for what the demo is asked about, frauds.

`streams.py` draws any log that looks back on itself; here the log is one of payments, so that the network learns what
such logs have in common before it sees one: accounts with a home, habits and a level, shops with a trade and a price,
and columns that every scorer of payments computes. Frauds come in schemes. A scheme is a set of traits (which trades,
which channels, abroad, at night, from a new device, in bursts, larger or tiny amounts, at one shop), each drawn to be
there or not, and as strong as drawn.

All numbers are drawn. The tables that the checkpoint is judged by (`cards.py`) are one more design of this family, with
its own numbers, seen at no time in training.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from training import events
from training.events import Column, Floats, Ints, Rng, Values, plain, unequal_shares
from training.streams import choose_rows, draw_episodes, draw_outbreaks
from training.windows import Past

MAX_ORDINARY = 6_000

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _Accounts:
    place: Values  # [accounts, 2]
    country: Ints
    level: Values  # of the logarithm of amounts
    taste: Values  # [accounts, trades], cumulated shares
    hour: Values  # usual time of day
    remote: Values  # how readily it pays without a shop, 0 to 1
    age: Values
    opened: Values  # days, negative


@dataclass(frozen=True)
class _Shops:
    place: Values  # [shops, 2]
    country: Ints
    trade: Ints
    price: Values  # of the logarithm of amounts


@dataclass(frozen=True)
class _World:
    """What a design fixes for all its payments."""

    accounts: _Accounts
    shops: _Shops
    price: Values  # [trades]
    remote: Values  # [trades], share paid without a shop
    num_countries: int
    channels: Values  # shares of those in a shop; the channel behind the last is the remote one
    num_days: float
    spread: float  # of the logarithm of amounts
    hours: float  # of the time of day
    new_device: float
    nearest_of: int


@dataclass(frozen=True)
class _Payments:
    """Arrays [payments]."""

    account: Ints
    shop: Ints
    time: Values  # days
    amount: Values
    country: Ints
    away: Values  # added to the distance between home and shop
    channel: Ints
    new_device: Flags
    scheme: Ints  # -1 for an ordinary one


def sample_payments(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Ints]:
    """Features float32 [rows, features] with NaN, and labels int64 [rows] in `0..num_classes - 1`."""
    share = rng.uniform(0.06, 0.5)
    num_frauds = int(share * num_rows * rng.uniform(1, 1.5)) + num_classes
    rarity = np.exp(rng.uniform(np.log(0.01), np.log(0.3)))
    num_usual = max(num_rows, int(min(num_frauds / rarity, MAX_ORDINARY)))
    world = _draw_world(rng, num_usual)
    usual = _ordinary(rng, world, num_usual)
    num_schemes = (num_classes - 1) * int(rng.integers(1, 6))
    parts = [usual]
    for scheme, part in enumerate(rng.dirichlet(np.full(num_schemes, 2.0))):
        make = _at_shops if rng.random() < 0.35 else _by_scheme
        parts.append(make(rng, world, usual, max(1, int(part * num_frauds)), scheme))
    together = _Payments(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Payments))
    )
    labels = np.where(together.scheme < 0, 0, 1 + together.scheme % max(1, num_classes - 1))
    columns = _observe(rng, world, together, labels > 0)
    chosen = rng.permutation(len(columns))[:num_features]
    while len(chosen) < num_features:  # more than a scorer has: some again, as noise would have them
        chosen = np.append(chosen, rng.integers(len(columns)))
    rows = choose_rows(rng, labels, together.time, num_rows, share)
    features = np.stack([columns[number].values for number in chosen], axis=1)[rows]
    if len(chosen) > len(columns):
        features[:, len(columns) :] *= np.exp(rng.normal(0, 0.3, (num_rows, len(chosen) - len(columns))))
    if rng.random() < 0.3:
        events.hide(rng, features, [columns[number] for number in chosen])
    wrong = rng.random(num_rows) < rng.choice([0.0, 0.0, 0.0, 0.01])
    labels = np.where(wrong, rng.integers(0, num_classes, num_rows), labels[rows])
    return features.astype(np.float32), rng.permutation(num_classes)[labels]


# --- ordinary life ---------------------------------------------------------------------------------------------------


def _draw_world(rng: Rng, num_payments: int) -> _World:
    num_trades, num_countries = int(rng.integers(4, 16)), int(rng.integers(2, 13))
    num_accounts = int(np.exp(rng.uniform(np.log(30), np.log(max(60, num_payments)))))
    num_shops = int(np.exp(rng.uniform(np.log(15), np.log(max(30, num_payments // 4)))))
    price = rng.normal(rng.uniform(2, 5), rng.uniform(0.3, 1.3), num_trades)
    trade = rng.choice(num_trades, num_shops, p=unequal_shares(rng, num_trades))
    taste = rng.dirichlet(rng.uniform(1, 20) * unequal_shares(rng, num_trades) + 0.05, num_accounts)
    size = rng.lognormal(0, 0.5)
    return _World(
        accounts=_Accounts(
            place=rng.normal(size=(num_accounts, 2)),
            country=rng.choice(num_countries, num_accounts, p=_descending(rng, num_countries)),
            level=rng.normal(0, rng.uniform(0.1, 0.9), num_accounts),
            taste=taste.cumsum(axis=1),
            hour=rng.normal(rng.uniform(10, 18), rng.uniform(0.5, 4), num_accounts),
            remote=rng.beta(*rng.uniform(1, 4, 2), num_accounts),
            age=np.clip(rng.normal(rng.uniform(30, 55), rng.uniform(8, 20), num_accounts), 18, 95),
            opened=-rng.exponential(rng.uniform(200, 2_000), num_accounts),
        ),
        shops=_Shops(
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


def _ordinary(rng: Rng, world: _World, size: int) -> _Payments:
    accounts = world.accounts
    activity = rng.gamma(rng.choice([0.5, 1.0, 2.0, 8.0]), size=len(accounts.age)) + 1e-6
    account = rng.choice(len(accounts.age), size, p=activity / activity.sum())
    trade = (rng.random(size)[:, None] > accounts.taste[account]).sum(axis=1).clip(0, len(world.price) - 1)
    shop = _nearest(rng, world, accounts.place[account], trade)
    hour = np.clip(accounts.hour[account] + rng.normal(0, world.hours, size), 0, 23.99)
    abroad = rng.random(size) < rng.uniform(0, 0.08)
    remote = rng.random(size) < world.remote[trade] * (0.5 + accounts.remote[account]) + rng.uniform(0, 0.1)
    return _Payments(
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


def _nearest(rng: Rng, world: _World, home: Values, trade: Ints) -> Ints:
    """For each home [n, 2] the nearest of a few shops of the trade."""
    shop = np.zeros(len(home), np.int64)
    for number in np.unique(trade):
        mask = trade == number
        of_trade = np.flatnonzero(world.shops.trade == number)
        options = rng.choice(of_trade if len(of_trade) else len(world.shops.trade), (int(mask.sum()), world.nearest_of))
        distance = np.linalg.norm(world.shops.place[options] - home[mask][:, None], axis=2)
        shop[mask] = options[np.arange(len(options)), distance.argmin(axis=1)]
    return shop


# --- frauds ----------------------------------------------------------------------------------------------------------


def _by_scheme(rng: Rng, world: _World, usual: _Payments, size: int, scheme: int) -> _Payments:
    """Episodes on one account each: traits differ from ordinary life where the scheme has them."""
    lengths, order = draw_episodes(rng, size, (0.0, 1.0, 2.0, 3.0, 5.0))
    n, accounts = len(order), world.accounts
    account = np.repeat(rng.integers(0, len(accounts.age), len(lengths)), lengths)
    is_last = np.append(order[1:] == 0, True) & (rng.random() < 0.4)
    trade = _wanted_trade(rng, world, accounts.taste[account])
    trade = np.where(is_last, _wanted_trade(rng, world, accounts.taste[account]), trade)
    shop = _nearest(rng, world, accounts.place[account] + rng.normal(0, rng.choice([0.0, 0.5, 1.5]), (n, 2)), trade)
    level = accounts.level[account] + world.shops.price[shop]
    amount = np.exp(level + rng.normal(rng.choice([0.0, 0.3, 0.7, 1.2, -1.0]), rng.uniform(0.3, 0.8), n))
    if rng.random() < 0.3:  # tiny ones, to see whether the card is still good
        amount = np.where(is_last, amount, np.exp(rng.normal(rng.uniform(-0.5, 1.5), rng.uniform(0.2, 0.7), n)))
    return _Payments(
        account=account,
        shop=shop,
        time=_episode_times(rng, world, lengths, order),
        amount=amount,
        country=_country(rng, world, account, trait=rng.random() < 0.6),
        away=rng.gamma(1.5, rng.lognormal(0, 0.7), n) * (rng.random() < 0.4),
        channel=_channel(rng, world, usual, n),
        new_device=rng.random(n) < (rng.uniform(world.new_device, 1) if rng.random() < 0.7 else world.new_device),
        scheme=np.full(n, scheme),
    )


def _wanted_trade(rng: Rng, world: _World, taste: Values) -> Ints:
    """By the account's own taste, or a few trades that the scheme is after."""
    if rng.random() < 0.25:
        return (rng.random(len(taste))[:, None] > taste).sum(axis=1).clip(0, len(world.price) - 1)
    few = rng.choice(len(world.price), int(rng.integers(1, 6)))
    return few[rng.choice(len(few), len(taste), p=unequal_shares(rng, len(few)))]


def _episode_times(rng: Rng, world: _World, lengths: Ints, order: Ints) -> Values:
    start = rng.uniform(0, world.num_days, len(lengths))
    if rng.random() < 0.35:
        centre, width = rng.choice([rng.uniform(0, 6), rng.uniform(0, 24)]), rng.uniform(0.5, 3)
        start = np.floor(start) + (rng.normal(centre, width, len(lengths)) % 24) / 24
    gap = np.exp(rng.uniform(np.log(5e-4), np.log(0.2)))
    steps = rng.exponential(gap, len(order)) if rng.random() < 0.5 else rng.uniform(0.1 * gap, 2 * gap, len(order))
    return np.repeat(start, lengths) + order * steps


def _country(rng: Rng, world: _World, account: Ints, *, trait: bool) -> Ints:
    own = world.accounts.country[account]
    if not trait:
        return own
    abroad = rng.random(len(own)) < rng.uniform(0.1, 0.8)
    risky = rng.choice(world.num_countries, int(rng.integers(1, world.num_countries + 1)))
    return np.where(abroad, risky[rng.integers(0, len(risky), len(own))], own)


def _channel(rng: Rng, world: _World, usual: _Payments, size: int) -> Ints:
    """All remote, by the scheme's own shares, or as ordinary ones are."""
    choice = rng.random()
    if choice < 0.45:
        return np.full(size, len(world.channels))
    if choice < 0.8:
        return rng.choice(len(world.channels) + 1, size, p=unequal_shares(rng, len(world.channels) + 1))
    return rng.choice(usual.channel, size)


def _at_shops(rng: Rng, world: _World, usual: _Payments, size: int, scheme: int) -> _Payments:
    """For some days a share of what passes through a shop is copied: same place and trade, at another time."""
    found = draw_outbreaks(rng, usual.shop, usual.time, world.num_days, rng.uniform(2, 14), size)
    n = len(found)
    copies = {field.name: getattr(usual, field.name)[found] for field in fields(_Payments)}
    marked = rng.random(n) < rng.uniform(0, 0.7)
    copies["channel"] = np.where(marked, rng.integers(len(world.channels) + 1), copies["channel"])
    copies["amount"] = copies["amount"] * np.exp(rng.normal(rng.uniform(-0.2, 0.6), rng.uniform(0.1, 0.7), n))
    copies["time"] = copies["time"] + rng.uniform(0, rng.choice([0.05, 0.5, 2.0]), n)
    return _Payments(**{**copies, "scheme": np.full(n, scheme)})


# --- what a scorer sees ----------------------------------------------------------------------------------------------


def _observe(rng: Rng, world: _World, seen: _Payments, is_fraud: Flags) -> list[Column]:
    """Every column that a scorer of payments may have; windows and delays are drawn."""
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
