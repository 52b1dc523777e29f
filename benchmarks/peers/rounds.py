"""The run: all systems started, then measured in rounds, A B C A B C, so that the machine's moods meet all alike.

First every system's highest rate is searched, in all rounds; then half of the best peer's highest rate is known, and
in as many rounds every system that can keep that rate is measured at it. There are two such rates: `half_load`, of the
best peer with tabpfn's engine, which most can keep, and `half_load_compiled_engine`, of the best peer with the compiled
engine. Systems that have no turn are frozen (SIGSTOP): an idle Ray would cost the others a tenth of a core.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.online.bisection import SearchSettings
from benchmarks.online.generator import Generator, raise_priority
from benchmarks.online.probe import ProbeSettings
from benchmarks.peers.contender import Contender
from benchmarks.peers.records import Record
from benchmarks.peers.systems import COMPILED, TABPFN, System
from benchmarks.percentiles import rounded

LOADS = {"half_load": TABPFN, "half_load_compiled_engine": COMPILED}
"""By the engine of the peers whose best sets the rate."""


@dataclass(frozen=True)
class Plan:
    """How the run goes. No round of searches begins that would, at the last one's pace, end after `budget_s`.

    Attributes:
        nice: the generator's, below 0 so that it need not queue for a core behind the servers that it measures.
    """

    rounds: int
    budget_s: float
    threads: int
    processes: int
    nice: int
    search_probe: ProbeSettings
    load_probe: ProbeSettings
    first: SearchSettings
    again: SearchSettings


Keep = Callable[[Sequence[Contender], dict[str, float]], None]


async def run_rounds(
    plan: Plan,
    systems: Sequence[System],
    records: Sequence[Record],
    expected: Sequence[Sequence[float]],
    logs: Path,
    keep: Keep = lambda *_: None,
) -> tuple[list[Contender], dict[str, float]]:
    """Measure and stop everything; the contenders with what was found, and the two rates.

    Args:
        keep: given both after every round, so that a run that is broken off leaves what it has.
    """
    began = time.monotonic()
    contenders: list[Contender] = []
    rates: dict[str, float] = {}
    try:
        for system in systems:
            contender = Contender(system, plan.threads, logs)
            contenders.append(contender)
            await contender.start(records, expected)
            _tell(system.name, contender.failure or f"ready after {contender.facts['start_s']:g} s")
        raise_priority(plan.nice)
        async with Generator(plan.processes) as generator:
            num_rounds = 0
            while num_rounds < plan.rounds:
                num_rounds += 1
                round_began = time.monotonic()
                await _search(plan, contenders, generator, num_rounds, records, expected)
                rates = half_loads(contenders)
                keep(contenders, rates)
                took = time.monotonic() - round_began
                _tell("round", f"{num_rounds} of {plan.rounds} took {took:.0f} s")
                if num_rounds > 1 and time.monotonic() - began + took > plan.budget_s:
                    break
            for number in range(1, num_rounds + 1):
                await _measure_loads(plan, contenders, generator, rates, number)
                keep(contenders, rates)
    finally:
        # side by side, since Ray takes ten seconds; the pool waits for all of them whatever interrupts this thread
        with ThreadPoolExecutor(len(contenders) or 1) as pool:
            list(pool.map(Contender.stop, contenders))
    return contenders, rates


async def _search(
    plan: Plan,
    contenders: Sequence[Contender],
    generator: Generator,
    number: int,
    records: Sequence[Record],
    expected: Sequence[Sequence[float]],
) -> None:
    for contender in contenders:
        if contender.can_be_revived:
            await contender.start(records, expected)
        if contender.is_running:
            await contender.search(generator, plan.search_probe, plan.first, plan.again, number)
            _tell(contender.system.name, contender.failure or f"{contender.max_rates[-1]:.1f}/s")


async def _measure_loads(
    plan: Plan, contenders: Sequence[Contender], generator: Generator, rates: dict[str, float], number: int
) -> None:
    for purpose, rate in rates.items():
        for contender in contenders:
            # at the higher load only those that have the faster engine are of interest
            if contender.is_running and (purpose == "half_load" or contender.system.engine == COMPILED):
                await contender.measure_at(generator, plan.load_probe, rate, purpose, number)


def half_loads(contenders: Sequence[Contender]) -> dict[str, float]:
    """Half of the best peer's highest rate, by the peers' engine; of ours where there is no peer at all."""
    found = {}
    for purpose, engine in LOADS.items():
        peers = [each.max_rate for each in contenders if each.system.is_peer and each.system.engine == engine]
        best = max(peers, default=0.0)
        if not any(each.system.is_peer for each in contenders) and purpose == "half_load":
            best = max((each.max_rate for each in contenders), default=0.0)
        if best > 0:
            found[purpose] = best / 2
    return found


def summarise_systems(contenders: Sequence[Contender]) -> dict[str, Any]:
    """The table, as JSON has it. None: not measured, and `failure` or `note` or the highest rate say why."""
    return {contender.system.name: _row(contender) for contender in contenders}


def _row(contender: Contender) -> dict[str, Any]:
    system = contender.system
    row: dict[str, Any] = {
        "engine": system.engine,
        "max_rate_p99_100ms": rounded(contender.max_rate) if contender.max_rates else None,
        "max_rates": [rounded(rate) for rate in contender.max_rates],
        "confidences": contender.confidences,
    }
    for purpose in LOADS:
        row[f"p50_ms_{purpose}"] = contender.values(purpose, "latency", "p50_ms")
        row[f"p99_ms_{purpose}"] = contender.values(purpose, "latency", "p99_ms")
    for purpose in LOADS:
        suffix = "" if purpose == "half_load" else f"_{purpose}"
        row[f"cpu_ms_per_request{suffix}"] = contender.values(purpose, "cpu_ms_per_request")
    row |= contender.facts
    row |= {
        "is_peer": system.is_peer,
        "settings": system.settings,
        "versions": system.versions,
        "tolerance": system.tolerance,
        "processes_killed": contender.num_killed,
        "void_probes": sum(probe["void"] for probe in contender.probes),
        "failure": contender.failure,
        "failures": contender.failures,
    }
    return row


def _tell(who: str, what: str) -> None:
    print(f"{who}: {what}", file=sys.stderr, flush=True)
