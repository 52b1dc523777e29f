"""Tables computed from streams of events: a mechanism whose columns look back in time.

A log that is scored as it grows holds more than the event itself: the time since the party's last event, its number
of events and their sum in a window, the ratio of this amount to its usual one, the share of its earlier events that
turned out bad. Such columns share the sequence that they are computed from, so they cannot be drawn one by one. A
stream is drawn first: parties of a few kinds, whose events follow habits of time, place and partner. Then episodes
break the habits: bursts at one member, outbreaks that take a share of the events of one member, single events. The
columns that look back follow from the sequence. The columns of the event itself are the kinds of `columns.py`, and the
anomaly of an episode disturbs them as in `events.py`.

All parameters are drawn: parties, habits, anomalies, windows and delays. The tables of `training/cards.py`, which judge
the checkpoint, are another stream of this family and are never seen in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.prior import columns as kinds
from training.prior.columns import Column, Hidden, plain
from training.prior.draws import Floats, Ints, Rng, Values, unequal_shares
from training.prior.episodes import MAX_ORDINARY, choose_rows, draw_episodes, draw_outbreaks
from training.prior.events import apply_anomaly, derive, hide_some, round_some
from training.windows import Past


@dataclass(frozen=True)
class _Party:
    """The members of one kind of party, such as accounts, shops, machines or wards."""

    group: Ints  # [members]
    size: Values  # [members, 3], such as how large and how busy a member is
    place: Values  # [members, 2]
    hour: Values  # [members] usual time of day
    activity: Values  # [members], sums to one


@dataclass(frozen=True)
class _Stream:
    """Events in order of time."""

    time: Values  # [events], in days
    members: list[Ints]  # for each kind of party, the member of each event [events]
    anomaly: Ints  # [events], -1 for an ordinary event
    strayed: Values  # [events], distance to add to that between the first party and its partner


def sample_streams(rng: Rng, num_rows: int, num_features: int, num_classes: int) -> tuple[Floats, Ints]:
    """Features float32 [rows, features] with NaN, and labels int64 [rows] in `0..num_classes - 1`."""
    share = rng.uniform(0.06, 0.5)
    stream, parties, class_of_anomaly = _draw_stream(rng, num_rows, share, num_classes)
    labels = np.where(stream.anomaly < 0, 0, class_of_anomaly[stream.anomaly])
    content = _draw_content(rng, stream, parties, len(class_of_anomaly))
    columns = [_draw_column(rng, stream, parties, content, labels) for _ in range(num_features)]
    rows = choose_rows(rng, labels, np.arange(len(labels)), num_rows, share)
    features = np.stack([column.values for column in columns], axis=1)[rows]
    derive(rng, features, columns)
    round_some(rng, features, columns)
    hide_some(rng, features, columns)
    wrong = rng.random(num_rows) < rng.choice([0.0, 0.0, 0.01, 0.05])
    labels = np.where(wrong, rng.integers(0, num_classes, num_rows), labels[rows])
    return features.astype(np.float32), rng.permutation(num_classes)[labels]


# --- the sequence ----------------------------------------------------------------------------------------------------


def _draw_stream(rng: Rng, num_rows: int, share: float, num_classes: int) -> tuple[_Stream, list[_Party], Ints]:
    """Draw a stream with enough ordinary and rare events.

    Returns:
        The stream, its parties, and the class of each anomaly.
    """
    num_rare = int(share * num_rows * rng.uniform(1, 1.4)) + num_classes
    rarity = np.exp(rng.uniform(np.log(0.01), np.log(0.4)))
    num_usual = max(num_rows, int(min(num_rare / rarity, MAX_ORDINARY)))  # enough even if no episode has events
    num_days = float(np.exp(rng.uniform(np.log(3), np.log(120))))
    parties = [_draw_party(rng, num_usual) for _ in range(int(rng.integers(1, 4)))]
    usual = _ordinary(rng, parties, num_usual, num_days, nearest_of=int(rng.integers(1, 7)))
    parts, class_of_anomaly = [usual], []
    num_anomalies = (num_classes - 1) * int(rng.integers(1, 6))
    for number, part in enumerate(rng.dirichlet(np.full(num_anomalies, 2.0))):
        kind = 1 + number % max(1, num_classes - 1)
        size = max(1, int(part * num_rare))
        episodes = _outbreaks if rng.random() < 0.3 else _bursts
        made = episodes(rng, parties, usual, size, num_days)
        for inner in range(int(made.anomaly.max()) + 1):  # the last events of episodes may have an anomaly of their own
            mask = made.anomaly == inner
            parts.append(_pick(made, mask, np.full(int(mask.sum()), len(class_of_anomaly))))
            class_of_anomaly.append(kind)
    order = np.argsort(np.concatenate([part.time for part in parts]), kind="stable")
    together = _Stream(
        np.concatenate([part.time for part in parts])[order],
        [np.concatenate([part.members[kind] for part in parts])[order] for kind in range(len(parties))],
        np.concatenate([part.anomaly for part in parts])[order],
        np.concatenate([part.strayed for part in parts])[order],
    )
    return together, parties, np.array(class_of_anomaly)


def _pick(stream: _Stream, mask: NDArray[np.bool_] | Ints, anomaly: Ints) -> _Stream:
    """Some events of a stream, as events of another anomaly."""
    return _Stream(stream.time[mask], [members[mask] for members in stream.members], anomaly, stream.strayed[mask])


def _draw_party(rng: Rng, num_events: int) -> _Party:
    members = int(np.exp(rng.uniform(np.log(8), np.log(max(16, num_events)))))
    num_groups = int(rng.integers(2, 13))
    activity = rng.gamma(rng.choice([0.5, 1.0, 2.0, 8.0]), size=members) + 1e-6
    return _Party(
        rng.choice(num_groups, members, p=unequal_shares(rng, num_groups)),
        rng.normal(size=(members, 3)),
        rng.normal(size=(members, 2)) * rng.lognormal(0, 0.3),
        rng.normal(rng.uniform(9, 18), rng.uniform(0.5, 4), members),
        activity / activity.sum(),
    )


def _ordinary(rng: Rng, parties: list[_Party], size: int, num_days: float, nearest_of: int) -> _Stream:
    first = rng.choice(len(parties[0].group), size, p=parties[0].activity)
    hour = np.clip(parties[0].hour[first] + rng.normal(0, rng.uniform(1, 6), size), 0, 23.99)
    return _Stream(
        np.floor(rng.uniform(0, num_days, size)) + hour / 24,
        [first, *(_near(rng, parties[0].place[first], party, nearest_of) for party in parties[1:])],
        np.full(size, -1),
        np.where(rng.random(size) < rng.uniform(0, 0.1), rng.gamma(2, 2, size), 0.0),
    )


def _near(rng: Rng, home: Values, party: _Party, nearest_of: int, wanted: Values | None = None) -> Ints:
    """For each home [n, 2] the nearest of a few members, drawn by activity and the `wanted` shares of groups."""
    chance = party.activity if wanted is None else party.activity * (wanted[party.group] + 1e-9)
    options = rng.choice(len(party.group), (len(home), nearest_of), p=chance / chance.sum())
    distance = np.linalg.norm(party.place[options] - home[:, None], axis=2)
    return options[np.arange(len(home)), distance.argmin(axis=1)]


def _bursts(rng: Rng, parties: list[_Party], usual: _Stream, size: int, num_days: float) -> _Stream:
    """Several events of one member of the first party in a short time, with partners of certain groups or far away."""
    del usual
    lengths, order = draw_episodes(rng, size, (0.0, 1.0, 2.0, 4.0, 8.0))
    first = np.repeat(rng.integers(0, len(parties[0].group), len(lengths)), lengths)
    start = rng.uniform(0, num_days, len(lengths))
    if rng.random() < 0.4:
        start = np.floor(start) + (rng.normal(rng.uniform(0, 24), rng.uniform(0.5, 4), len(lengths)) % 24) / 24
    gap = np.exp(rng.uniform(np.log(1e-3), np.log(0.3)))
    time = np.repeat(start, lengths) + order * rng.exponential(gap, len(order))
    far = rng.normal(0, rng.choice([0.0, 0.5, 2.0]), (len(order), 2))
    members = [first]
    for party in parties[1:]:
        wanted = unequal_shares(rng, int(party.group.max()) + 1) if rng.random() < 0.6 else None
        members.append(_near(rng, parties[0].place[first] + far, party, int(rng.integers(1, 7)), wanted))
    last = np.append(order[1:] == 0, True) if rng.random() < 0.25 and lengths.max() > 1 else np.zeros(len(order), bool)
    strayed = rng.gamma(1.5, rng.lognormal(0, 1), len(order)) * (rng.random(len(order)) < rng.uniform(0, 1))
    return _Stream(time, members, last.astype(np.int64), strayed * rng.choice([0.0, 1.0]))


def _outbreaks(rng: Rng, parties: list[_Party], usual: _Stream, size: int, num_days: float) -> _Stream:
    """For some days a share of the ordinary events of one member of a party is repeated."""
    kind = int(rng.integers(len(parties)))
    found = draw_outbreaks(rng, usual.members[kind], usual.time, num_days, num_days * rng.uniform(0.03, 0.3), size)
    copies = _pick(usual, found, np.zeros(len(found), np.int64))
    return _Stream(
        copies.time + rng.uniform(0, rng.choice([0.05, 0.5]), len(found)),
        copies.members,
        copies.anomaly,
        copies.strayed,
    )


# --- the columns of an event itself ----------------------------------------------------------------------------------

_CONTENT = (kinds.amount, kinds.amount, kinds.attribute, kinds.code, kinds.code, kinds.flag, kinds.clock)


def _draw_content(rng: Rng, stream: _Stream, parties: list[_Party], num_anomalies: int) -> list[Column]:
    """Draw columns of the events themselves, disturbed by the anomalies. The first is an amount."""
    size = parties[0].size[stream.members[0]] + 0.5 * parties[-1].size[stream.members[-1]]
    columns = []
    for number in range(10):
        _, kind = rng.integers(len(parties)), rng.integers(len(parties))
        hidden = Hidden(parties[kind].group[stream.members[kind]], size)
        columns.append((kinds.amount if number == 0 else _CONTENT[rng.integers(len(_CONTENT))])(rng, hidden))
    values = np.stack([column.values for column in columns], axis=1)
    for anomaly in range(num_anomalies):
        apply_anomaly(rng, values, columns, np.flatnonzero(stream.anomaly == anomaly))
    return [Column(values[:, number], column.disturb, column.is_code) for number, column in enumerate(columns)]


# --- columns that look back ------------------------------------------------------------------------------------------


def _draw_column(rng: Rng, stream: _Stream, parties: list[_Party], content: list[Column], labels: Ints) -> Column:
    """Draw one column of the table, of a random kind."""
    if rng.random() < 0.4:
        return content[rng.integers(len(content))]
    kind = int(rng.integers(len(parties)))
    party, members = parties[kind], stream.members[kind]
    past, amounts = Past(members, stream.time), content[0].values
    window = np.exp(rng.uniform(np.log(0.01), np.log(10)))
    choice = rng.random()
    if choice < 0.2:
        return plain(past.total(window))
    if choice < 0.3:
        return plain(past.total(window, amounts))
    if choice < 0.4:
        return plain(past.since_last())
    if choice < 0.5:
        return plain(amounts / _usual(rng, members, amounts, stream.anomaly < 0))
    if choice < 0.63:
        delay = rng.choice([0.0, 0.5, 2.0, 5.0]) * rng.uniform(0.3, 1)
        return plain(past.reported(max(window, 2.0), delay, labels > 0))
    if choice < 0.73:
        partner = int(rng.integers(len(parties)))
        apart = party.place[members] - parties[partner].place[stream.members[partner]]
        return plain(np.linalg.norm(apart, axis=1) + stream.strayed)
    if choice < 0.8:
        return plain(stream.time % 1 * 24 if rng.random() < 0.6 else np.floor(stream.time) % 7)
    if choice < 0.92:
        names = rng.permutation(int(party.group.max()) + 1)
        return plain(names[party.group[members]].astype(np.float64), is_code=True)
    opened = np.where(rng.random() < 0.5, stream.time, 0.0)
    age = opened + rng.exponential(rng.lognormal(3, 1), len(party.group))[members]
    return plain(age if rng.random() < 0.5 else party.size[members, rng.integers(3)] * rng.lognormal(1, 1))


def _usual(rng: Rng, members: Ints, amounts: Values, ordinary: NDArray[np.bool_]) -> Values:
    """The usual amount of each event's member, roughly known: the geometric mean of its ordinary events."""
    logs = np.log(np.maximum(amounts, 1e-6))
    size = int(members.max()) + 1
    count = np.bincount(members[ordinary], minlength=size)
    mean = (np.bincount(members[ordinary], logs[ordinary], size) + logs.mean()) / (count + 1)
    return np.exp(mean[members] + rng.normal(0, rng.uniform(0.05, 0.3), len(members)))
