"""The run: all systems are started, then measured in rounds, A B C A B C, so that a disturbance meets all alike.

First every system's highest rate is searched, in all rounds. Then half of the best peer's highest rate is known, and in
as many rounds every system that can keep that rate is measured at it. There are two such rates: `half_load`, of the
best peer with tabpfn's engine, which most can keep, and `half_load_compiled_engine`, of the best peer with the compiled
engine.

Systems that have no turn are frozen (SIGSTOP): an idle Ray would cost the others a tenth of a core.
"""

from __future__ import annotations

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
from benchmarks.progress import Progress

LOADS = {"half_load": TABPFN, "half_load_compiled_engine": COMPILED}
"""Each load, and the engine of the peers whose best one sets its rate."""


@dataclass(frozen=True)
class Plan:
    """How the run goes. No round of searches begins that would, at the last one's pace, end after `budget_s`.

    Attributes:
        nice: nice value of the generator, below 0 so that it need not queue for a core behind the servers.
        first: the search of a system whose highest rate is not known yet.
        again: the search around the rate that was found before.
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
    """Measure and stop everything. Returns the contenders with what was found, and the two rates.

    Args:
        expected: the right answer to each record.
        logs: folder of the systems' own output.
        keep: called with both results after every round, so that a run that is cut short leaves what it has.
    """
    rounds = _Rounds(plan, records, expected, keep)
    try:
        await rounds.start(systems, logs)
        raise_priority(plan.nice)
        async with Generator(plan.processes) as generator:
            num_rounds = await rounds.search(generator)
            await rounds.measure_loads(generator, num_rounds)
    finally:
        # side by side, since Ray takes ten seconds; the pool waits for all of them even if this thread is interrupted
        with ThreadPoolExecutor(len(systems) or 1) as pool:
            list(pool.map(Contender.stop, rounds.contenders))
    return rounds.contenders, rounds.rates


class _Rounds:
    """The contenders of one run, and the rates that were found so far."""

    def __init__(self, plan: Plan, records: Sequence[Record], expected: Sequence[Sequence[float]], keep: Keep) -> None:
        self.contenders: list[Contender] = []
        self.rates: dict[str, float] = {}
        self._plan, self._records, self._expected, self._keep = plan, records, expected, keep
        self._began = time.monotonic()

    async def start(self, systems: Sequence[System], logs: Path) -> None:
        """One system after the other."""
        progress = Progress(len(systems), "systems started")
        for system in systems:
            contender = Contender(system, self._plan.threads, logs)
            self.contenders.append(contender)
            await contender.start(self._records, self._expected)
            progress.step(f"{system.name}: {contender.failure or 'ready'}")

    async def search(self, generator: Generator) -> int:
        """Every system's highest rate, in rounds; the number of rounds that the budget allowed."""
        plan = self._plan
        progress = Progress(plan.rounds * len(self.contenders), "searches")
        for number in range(1, plan.rounds + 1):
            round_began = time.monotonic()
            for contender in self.contenders:
                found = await self._search_one(contender, generator, number)
                progress.step(f"round {number}, {contender.system.name}: {found}")
            self.rates = half_loads(self.contenders)
            self._keep(self.contenders, self.rates)
            now = time.monotonic()
            if 1 < number < plan.rounds and now - self._began + (now - round_began) > plan.budget_s:
                progress.say(f"another round would take longer than --budget-s {plan.budget_s:g}; no further searches")
                return number
        return plan.rounds

    async def _search_one(self, contender: Contender, generator: Generator, number: int) -> str:
        plan = self._plan
        if contender.can_be_revived:
            await contender.start(self._records, self._expected)
        if contender.is_running:
            await contender.search(generator, plan.search_probe, plan.first, plan.again, number)
        return contender.failure or f"{contender.max_rates[-1]:.1f} requests/s"

    async def measure_loads(self, generator: Generator, num_rounds: int) -> None:
        """Latency and CPU at the two rates, of the systems that can keep them."""
        turns = [
            (purpose, rate, contender)
            for purpose, rate in self.rates.items()
            for contender in self.contenders
            # at the higher load only systems with the faster engine are of interest
            if contender.keeps(rate) and (purpose == "half_load" or contender.system.engine == COMPILED)
        ]
        progress = Progress(num_rounds * len(turns), "measurements at half load")
        for number in range(1, num_rounds + 1):
            for purpose, rate, contender in turns:
                if contender.is_running:
                    await contender.measure_at(generator, self._plan.load_probe, rate, purpose, number)
                p99 = contender.probes[-1]["latency"]["p99_ms"]
                found = contender.failure or (f"p99 {p99:.1f} ms" if p99 is not None else "no answer")
                progress.step(f"round {number}, {contender.system.name} at {rate:.0f} requests/s: {found}")
            self._keep(self.contenders, self.rates)


def half_loads(contenders: Sequence[Contender]) -> dict[str, float]:
    """Half of the best peer's highest rate, by the peers' engine. Without any peer, half of the best system's."""
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
    """The table, as JSON has it. None: not measured; `failure`, `note` or the highest rate say why."""
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
