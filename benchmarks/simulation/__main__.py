"""Compare the batching policy with its peers' under a virtual clock.

A batch takes as long as the cost model of the device says, and the clock jumps to its end. So every policy meets the
same arrivals on the same device, and a whole run takes about three minutes. HTTP, encoding and Python between two
batches are not simulated: benchmarks.online measures them.

experiments:
  load                   latency and share of requests answered in time, from idle to overload
  contexts               the same rate over 1 to 500 contexts
  bulk                   interactive requests beside bulk callers
  replicas               1 to 16 replicas behind each router
  replicas and contexts  500 contexts on 8 replicas
  soak                   days of a slow server
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import add_outputs, check_outputs, command_parser, positive, write_outputs
from benchmarks.simulation.experiments import EXPERIMENTS
from benchmarks.simulation.run import SimulationOptions, run_simulation, write_json


def table(run: Mapping[str, Any]) -> str:
    """One line per experiment with its speed; one line per policy with its share of answers in time at every load."""
    lines = [
        f"{name}: {facts['runs']} runs, {facts['requests']} requests, {facts['simulated_hours']} simulated hours "
        f"in {facts['wall_s']} s ({facts['requests_per_wall_s']} requests and "
        f"{facts['simulated_s_per_wall_s']} simulated seconds per second)"
        for name, facts in run["speed"].items()
    ]
    shares: dict[tuple[str, str, str, str], list[str]] = {}
    for result in run["results"]:
        if result["experiment"] == "load":
            key = (result["device"], result["mix"], result["arrivals"], result["policy"])
            shares.setdefault(key, []).append(f"{result['load']:g}: {result['goodput_share']:.3f}")
    lines += [f"{', '.join(key)}: share answered in time, by load: {'  '.join(each)}" for key, each in shares.items()]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> tuple[SimulationOptions, Path | None, Path | None]:
    """The run's options, and the files for its JSON and its plot."""
    parser = command_parser("benchmarks.simulation", __doc__)
    default = SimulationOptions()
    parser.add_argument(
        "--experiments",
        nargs="+",
        choices=list(EXPERIMENTS),
        default=default.experiments,
        metavar="NAME",
        help="experiments to run; quote a name that has spaces",
    )
    parser.add_argument(
        "--requests", type=positive, default=default.requests, help="of an average run; fewer are faster and noisier"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of arrivals, contexts, sizes and routing")
    add_outputs(parser)
    given: argparse.Namespace = parser.parse_args(arguments)
    check_outputs(parser, given.json, given.plot)
    return SimulationOptions(tuple(given.experiments), given.requests, given.seed), given.json, given.plot


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments and print their table; the exit status."""
    options, to_json, to_plot = parse(arguments)
    run = run_simulation(options)
    if to_json:
        write_json(run, to_json)  # its own, with one line for each result
    write_outputs(run, None, to_plot)
    print(table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
