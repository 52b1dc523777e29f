"""A whole run of the simulation: tune the peers, then run every policy under every load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import envelope
from benchmarks.progress import Progress
from benchmarks.simulation.cell import WARM_UP_SHARE, Finished, Load, simulate
from benchmarks.simulation.contenders import WITH_DEFAULTS, Contender
from benchmarks.simulation.device import DEVICES
from benchmarks.simulation.experiments import EXPERIMENTS, TUNED_FOR, WITHOUT_PEERS, plan
from benchmarks.simulation.tuning import tune
from benchmarks.simulation.workload import MIXES

PROGRESS_EVERY_S = 5.0

Tuned = dict[str, list[Contender]]
"""By device, the tuned peers."""


@dataclass(frozen=True)
class SimulationOptions:
    """The whole configuration of one run.

    Attributes:
        requests: of an average simulated run.
    """

    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    requests: int = 8_000
    seed: int = 1


class Stopwatch:
    """Adds up simulated time and real time over many runs."""

    def __init__(self) -> None:
        self.simulated_s = self.wall_s = self.cpu_s = 0.0
        self.num_runs = self.num_requests = 0

    def simulate(self, contender: Contender, load: Load) -> Finished:
        """As `cell.simulate`, and add the run to the sums."""
        finished = simulate(contender, load)
        self.simulated_s += finished.simulated_s
        self.wall_s += finished.wall_s
        self.cpu_s += finished.cpu_s
        self.num_runs += 1
        self.num_requests += finished.num_requests
        return finished

    def facts(self) -> dict[str, Any]:
        """The sums, and speeds in real time."""
        wall_s = max(self.wall_s, 1e-9)
        return {
            "runs": self.num_runs,
            "requests": self.num_requests,
            "simulated_hours": round(self.simulated_s / 3600, 2),
            "wall_s": round(self.wall_s, 1),
            "cpu_s": round(self.cpu_s, 1),
            "requests_per_wall_s": round(self.num_requests / wall_s),
            "simulated_s_per_wall_s": round(self.simulated_s / wall_s),
        }


def run_simulation(options: SimulationOptions) -> dict[str, Any]:
    """Tune the peers, then do every run of the grid. Everything but `speed` depends on the options alone."""
    watches: dict[str, Stopwatch] = {}
    tuned = _tune(options, watches) if set(options.experiments) - set(WITHOUT_PEERS) else {}
    runs = [
        (experiment, load, contender)
        for experiment, load, contenders in plan(options.experiments, options.requests, options.seed, tuned)
        for contender in contenders
    ]
    total = sum(load.expected_requests for _, load, _ in runs)
    progress = Progress(len(runs), "runs", total, every_s=PROGRESS_EVERY_S)
    results: list[dict[str, Any]] = []
    for experiment, load, contender in runs:
        watch = watches.setdefault(experiment, Stopwatch())
        results.append({"experiment": experiment, **watch.simulate(contender, load).result})
        progress.step(f"experiment {experiment!r}", load.expected_requests)
    speed = {name: watch.facts() for name, watch in watches.items()}
    return envelope("simulation", _config(options, tuned), results, speed=speed)


def _tune(options: SimulationOptions, watches: dict[str, Stopwatch]) -> Tuned:
    watch = watches["tuning"] = Stopwatch()
    devices = tuple(dict.fromkeys(TUNED_FOR.values()))
    progress = Progress(len(devices), "devices")
    tuned: Tuned = {}
    progress.say("finding the best settings of each peer")
    for device in devices:
        tuned[device] = tune(device, options.requests // 2, options.seed, watch.simulate)
        progress.step(f"peers tuned for {device!r}")
    return tuned


def _config(options: SimulationOptions, tuned: Tuned) -> dict[str, Any]:
    return {
        **dataclasses.asdict(options),
        "warm_up_share": WARM_UP_SHARE,
        "devices": {
            name: dataclasses.asdict(device) | {"capacity_rows_per_s": round(device.capacity_rows, 1)}
            for name, device in DEVICES.items()
        },
        "mixes": {name: [dataclasses.asdict(share) for share in mix.shares] for name, mix in MIXES.items()},
        "policies": {contender.name: contender.settings for contender in WITH_DEFAULTS},
        "tuned": {
            device: {contender.name: contender.settings for contender in contenders}
            for device, contenders in tuned.items()
        },
    }


def write_json(run: Mapping[str, Any], path: Path) -> None:
    """As `benchmarks.machine.write_json`, with one line for each of the many results."""
    head = json.dumps({**run, "results": []}, indent=2, allow_nan=False)
    lines = ",\n".join("    " + json.dumps(result, allow_nan=False) for result in run["results"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head.replace('"results": []', f'"results": [\n{lines}\n  ]') + "\n", encoding="utf-8")
