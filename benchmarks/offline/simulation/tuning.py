"""Finding each peer's best settings for a device, so that nobody is beaten by his defaults alone."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.offline.simulation.cell import Finished, Load, simulate
from benchmarks.offline.simulation.contenders import Contender, candidates
from benchmarks.offline.simulation.device import DEVICES

MIXES_TRIED, LOADS_TRIED = ("1-100 rows", "1 row"), (0.5, 0.8)
GOOD_ENOUGH, HOPELESS = 0.01, 0.5
"""Of those whose share of answers in time is within so much of the best, the lowest p99 wins; who is behind by
so much in the sum of the loads so far is given up."""

Simulate = Callable[[Contender, Load], Finished]


def tune(device: str, num_requests: int, seed: int, run: Simulate = simulate) -> list[Contender]:
    """The best candidate for each peer, over all the loads tried together."""
    # not the seed of the grid: what is tuned on a load would otherwise be judged on the very same arrivals
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
        # who is far behind is not tried any further
        shares = {place: each for place, each in shares.items() if sum(each) >= best - HOPELESS}
    among = [place for place, each in shares.items() if sum(each) >= best - GOOD_ENOUGH * len(loads)]
    return tried[min(among, key=lambda place: (sum(p99_ms[place]), place))]
