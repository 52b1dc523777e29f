"""Our batching policy against its peers' under a virtual clock: `python -m benchmarks.offline.batcher --help`.

Nothing waits and nothing is computed: a batch "takes" what the device's cost model says, and the clock jumps to its
end. So every policy meets the same arrivals on the same device, thousands of runs take minutes, and a run with the
same seed gives the same numbers to the last digit. What the policies are is told in `benchmarks/offline/simulation/`;
what a real server adds to them (HTTP, encoding, Python) is not in it: `benchmarks/online` measures that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import envelope
from benchmarks.offline.simulation.cell import WARM_UP_SHARE, Finished, Load, simulate
from benchmarks.offline.simulation.contenders import AS_THEY_COME, Contender
from benchmarks.offline.simulation.device import DEVICES
from benchmarks.offline.simulation.experiments import EXPERIMENTS, OURS_ALONE, TUNED_FOR, plan
from benchmarks.offline.simulation.tuning import tune
from benchmarks.offline.simulation.workload import MIXES


@dataclass(frozen=True)
class BatcherOptions:
    """One run's whole configuration."""

    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    requests: int = 8_000
    seed: int = 1


class Stopwatch:
    """Adds up what was simulated and what it took."""

    def __init__(self) -> None:
        self.simulated_s = self.wall_s = self.cpu_s = 0.0
        self.num_runs = self.num_requests = 0

    def simulate(self, contender: Contender, load: Load) -> Finished:
        finished = simulate(contender, load)
        self.simulated_s += finished.simulated_s
        self.wall_s += finished.wall_s
        self.cpu_s += finished.cpu_s
        self.num_runs += 1
        self.num_requests += finished.num_requests
        return finished

    def facts(self) -> dict[str, Any]:
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


def run_batcher(options: BatcherOptions) -> dict[str, Any]:
    """Tune the peers, then every run of the grid; the run as JSON. All but `speed` depends on the options alone."""
    watches: dict[str, Stopwatch] = {}
    tuned: dict[str, list[Contender]] = {}
    if set(options.experiments) - set(OURS_ALONE):
        watch = watches["tuning"] = Stopwatch()
        tuned = {
            device: tune(device, options.requests // 2, options.seed, watch.simulate)
            for device in dict.fromkeys(TUNED_FOR.values())
        }
        progress("tuning", watch)
    results: list[dict[str, Any]] = []
    told_at = time.monotonic()
    for experiment, load, contenders in plan(options.experiments, options.requests, options.seed, tuned):
        watch = watches.setdefault(experiment, Stopwatch())
        results += [{"experiment": experiment, **watch.simulate(each, load).result} for each in contenders]
        if time.monotonic() - told_at > 5:
            told_at = time.monotonic()
            progress(experiment, watch)
    return envelope(
        "offline-batcher",
        {
            **dataclasses.asdict(options),
            "warm_up_share": WARM_UP_SHARE,
            "devices": {
                name: dataclasses.asdict(device) | {"capacity_rows_per_s": round(device.capacity_rows, 1)}
                for name, device in DEVICES.items()
            },
            "mixes": {name: [dataclasses.asdict(share) for share in mix.shares] for name, mix in MIXES.items()},
            "policies": {contender.name: contender.settings for contender in AS_THEY_COME},
            "tuned": {
                device: {contender.name: contender.settings for contender in contenders}
                for device, contenders in tuned.items()
            },
        },
        results,
        speed={name: watch.facts() for name, watch in watches.items()},
    )


def progress(experiment: str, watch: Stopwatch) -> None:
    print(f"{experiment}: {watch.num_runs} runs, {watch.num_requests} requests", file=sys.stderr, flush=True)


def write_json(run: Mapping[str, Any], path: Path) -> None:
    """As `benchmarks.machine.write_json`, but a line for each result: there are many."""
    head = json.dumps({**run, "results": []}, indent=2, allow_nan=False)
    lines = ",\n".join("    " + json.dumps(result, allow_nan=False) for result in run["results"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head.replace('"results": []', f'"results": [\n{lines}\n  ]') + "\n", encoding="utf-8")


def table(run: Mapping[str, Any]) -> str:
    """One line per experiment with what it took, and per policy its share of answers in time at every load."""
    lines = [
        f"{name}: {facts['runs']} runs, {facts['requests']} requests, {facts['simulated_hours']} simulated hours "
        f"in {facts['wall_s']} s ({facts['requests_per_wall_s']} requests, "
        f"{facts['simulated_s_per_wall_s']} simulated seconds a second)"
        for name, facts in run["speed"].items()
    ]
    shares: dict[tuple[str, str, str, str], list[str]] = {}
    for result in run["results"]:
        if result["experiment"] == "load":
            key = (result["device"], result["mix"], result["arrivals"], result["policy"])
            shares.setdefault(key, []).append(f"{result['load']:g}: {result['goodput_share']:.3f}")
    lines += [f"{', '.join(key)}: share in time at load {'  '.join(each)}" for key, each in shares.items()]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> tuple[BatcherOptions, Path | None, Path | None]:
    """The run's options, and where its JSON and its plot go."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offline.batcher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = BatcherOptions()
    parser.add_argument(
        "--experiments", nargs="+", choices=list(EXPERIMENTS), default=default.experiments, help="which are run"
    )
    parser.add_argument(
        "--requests", type=int, default=default.requests, help="of an average run; fewer are faster and noisier"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of arrivals, contexts, sizes and routing")
    parser.add_argument("--json", type=Path, help="write the run here")
    parser.add_argument("--plot", type=Path, help="draw it here (PNG)")
    given = parser.parse_args(arguments)
    return BatcherOptions(tuple(given.experiments), given.requests, given.seed), given.json, given.plot


def main(arguments: Sequence[str] | None = None) -> int:
    options, to_json, to_plot = parse(arguments)
    run = run_batcher(options)
    if to_json:
        write_json(run, to_json)
    if to_plot:
        from benchmarks.offline.simulation.plot import plot

        plot(run, to_plot)
    print(table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
