"""Finds the best settings of every peer for a device, so that no peer loses by its defaults alone."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.simulation.cell import Finished, Load, simulate
from benchmarks.simulation.contenders import Contender, candidates
from benchmarks.simulation.device import DEVICES

MIXES_TRIED, LOADS_TRIED = ("1-100 rows", "1 row"), (0.5, 0.8)
GOOD_ENOUGH, HOPELESS = 0.01, 0.5
"""Differences in the share of requests answered in time. Among settings within GOOD_ENOUGH of the best, the lowest p99
wins. Settings that are HOPELESS behind, in the sum over the loads so far, are not tried further."""

Simulate = Callable[[Contender, Load], Finished]


def tune(device: str, num_requests: int, seed: int, run: Simulate = simulate) -> list[Contender]:
    """The best candidate of each peer over all loads tried. `num_requests` of each load."""
    # not the seed of the grid: settings must not be judged on the arrivals that they were tuned for
    loads = [
        Load(device, mix, load=load, num_requests=num_requests, seed=seed + 1)
        for mix in MIXES_TRIED
        for load in LOADS_TRIED
    ]
    return [_best(tried, loads, run) for tried in candidates(DEVICES[device]).values()]


def _best(tried: list[Contender], loads: list[Load], run: Simulate) -> Contender:
    shares: dict[int, list[float]] = {place: [] for place in range(len(tried))}
    p99_ms: dict[int, list[float]] = {place: [] for place in range(len(tried))}
    for load in loads:
        for place in shares:
            result = run(tried[place], load).result
            shares[place].append(result["goodput_share"])
            p99_ms[place].append(result["latency"]["p99_ms"])
        best = max(map(sum, shares.values()))
        shares = {place: each for place, each in shares.items() if sum(each) >= best - HOPELESS}
    among = [place for place, each in shares.items() if sum(each) >= best - GOOD_ENOUGH * len(loads)]
    return tried[min(among, key=lambda place: (sum(p99_ms[place]), place))]
