"""Fraudulent payments: schemes with drawn traits, and outbreaks at a few shops."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from training.prior.draws import Ints, Rng, Values, unequal_shares
from training.prior.episodes import draw_episodes, draw_outbreaks
from training.prior.payments.world import Payments, World, nearest_shop


def draw_scheme(rng: Rng, world: World, usual: Payments, size: int, scheme: int) -> Payments:
    """Draw the frauds of a scheme: episodes on one account each, which differ from ordinary payments by its traits."""
    lengths, order = draw_episodes(rng, size, (0.0, 1.0, 2.0, 3.0, 5.0))
    n, accounts = len(order), world.accounts
    account = np.repeat(rng.integers(0, len(accounts.age), len(lengths)), lengths)
    is_last = np.append(order[1:] == 0, True) & (rng.random() < 0.4)
    trade = _wanted_trade(rng, world, accounts.taste[account])
    trade = np.where(is_last, _wanted_trade(rng, world, accounts.taste[account]), trade)
    shop = nearest_shop(rng, world, accounts.place[account] + rng.normal(0, rng.choice([0.0, 0.5, 1.5]), (n, 2)), trade)
    level = accounts.level[account] + world.shops.price[shop]
    amount = np.exp(level + rng.normal(rng.choice([0.0, 0.3, 0.7, 1.2, -1.0]), rng.uniform(0.3, 0.8), n))
    if rng.random() < 0.3:  # tiny amounts, to test whether the card still works
        amount = np.where(is_last, amount, np.exp(rng.normal(rng.uniform(-0.5, 1.5), rng.uniform(0.2, 0.7), n)))
    return Payments(
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


def _wanted_trade(rng: Rng, world: World, taste: Values) -> Ints:
    """Trades by the accounts' own taste, or a few trades that the scheme prefers."""
    if rng.random() < 0.25:
        return (rng.random(len(taste))[:, None] > taste).sum(axis=1).clip(0, len(world.price) - 1)
    few = rng.choice(len(world.price), int(rng.integers(1, 6)))
    return few[rng.choice(len(few), len(taste), p=unequal_shares(rng, len(few)))]


def _episode_times(rng: Rng, world: World, lengths: Ints, order: Ints) -> Values:
    start = rng.uniform(0, world.num_days, len(lengths))
    if rng.random() < 0.35:
        centre, width = rng.choice([rng.uniform(0, 6), rng.uniform(0, 24)]), rng.uniform(0.5, 3)
        start = np.floor(start) + (rng.normal(centre, width, len(lengths)) % 24) / 24
    gap = np.exp(rng.uniform(np.log(5e-4), np.log(0.2)))
    steps = rng.exponential(gap, len(order)) if rng.random() < 0.5 else rng.uniform(0.1 * gap, 2 * gap, len(order))
    return np.repeat(start, lengths) + order * steps


def _country(rng: Rng, world: World, account: Ints, *, trait: bool) -> Ints:
    own = world.accounts.country[account]
    if not trait:
        return own
    abroad = rng.random(len(own)) < rng.uniform(0.1, 0.8)
    risky = rng.choice(world.num_countries, int(rng.integers(1, world.num_countries + 1)))
    return np.where(abroad, risky[rng.integers(0, len(risky), len(own))], own)


def _channel(rng: Rng, world: World, usual: Payments, size: int) -> Ints:
    """Channels: all remote, or by the scheme's own shares, or as of ordinary payments."""
    choice = rng.random()
    if choice < 0.45:
        return np.full(size, len(world.channels))
    if choice < 0.8:
        return rng.choice(len(world.channels) + 1, size, p=unequal_shares(rng, len(world.channels) + 1))
    return rng.choice(usual.channel, size)


def draw_outbreak(rng: Rng, world: World, usual: Payments, size: int, scheme: int) -> Payments:
    """Draw the frauds of a scheme that copies, for some days, a share of the payments at a shop, at another time."""
    found = draw_outbreaks(rng, usual.shop, usual.time, world.num_days, rng.uniform(2, 14), size)
    n = len(found)
    copies = {field.name: getattr(usual, field.name)[found] for field in fields(Payments)}
    marked = rng.random(n) < rng.uniform(0, 0.7)
    copies["channel"] = np.where(marked, rng.integers(len(world.channels) + 1), copies["channel"])
    copies["amount"] = copies["amount"] * np.exp(rng.normal(rng.uniform(-0.2, 0.6), rng.uniform(0.1, 0.7), n))
    copies["time"] = copies["time"] + rng.uniform(0, rng.choice([0.05, 0.5, 2.0]), n)
    return Payments(**{**copies, "scheme": np.full(n, scheme)})
