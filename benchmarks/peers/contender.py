"""One system in the run: its processes, its requests, and what was found about it so far."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.online.bisection import SearchSettings, find_max_rate
from benchmarks.online.closed_loop import answers_per_s
from benchmarks.online.errors import BenchmarkError, Refused, WrongAnswers
from benchmarks.online.generator import Generator
from benchmarks.online.probe import Prober, ProbeSettings
from benchmarks.online.target import Ready, make_ready
from benchmarks.online.wire import difference
from benchmarks.peers.process import Process
from benchmarks.peers.records import Record
from benchmarks.peers.systems import System
from benchmarks.percentiles import rounded

_CLOSED_LOOP_CONNECTIONS, _CLOSED_LOOP_S = 32, 3.0
_START_SHARE = 0.5
_MAX_REVIVALS = 2
_FAILURES = (BenchmarkError, OSError)


class Contender:
    """Started once and frozen while others are measured. A failure ends this contender's part in the run, no other's.

    Attributes:
        failure: why it takes no further part, or waits to be started again; None: it runs.
        max_rates: highest rate of each round.
        confidences: of each round's highest rate, the confidence that p99 keeps the bound there.
        num_killed: processes that outlived a stop and were killed.
    """

    def __init__(self, system: System, threads: int, log_folder: Path) -> None:
        self.system = system
        self.failure: str | None = None
        self.failures: list[str] = []
        self.max_rates: list[float] = []
        self.confidences: list[float | None] = []
        self.probes: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.num_killed = 0
        self.process = self._new_process(threads, log_folder)
        self._new = lambda: self._new_process(threads, log_folder)
        self._ready: Ready | None = None
        self._num_probes = 0

    def _new_process(self, threads: int, log_folder: Path) -> Process:
        return self.system.process(threads, log_folder / f"{self.system.name}.{len(self.failures)}.log")

    @property
    def can_be_revived(self) -> bool:
        """Whether it ran well, then hung or died: it is then started again for the next round."""
        return self.failure is not None and self._ready is not None and len(self.failures) <= _MAX_REVIVALS

    @property
    def is_running(self) -> bool:
        """Whether it can be measured."""
        return self.failure is None and self._ready is not None

    def keeps(self, rate: float) -> bool:
        """Whether it can be measured at this rate: above its own highest rate there is nothing to learn."""
        return self.is_running and rate <= self.max_rate

    @property
    def max_rate(self) -> float:
        """The median of the rounds so far, 0 before the first."""
        return statistics.median(self.max_rates) if self.max_rates else 0.0

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Its turn: it is thawed, then frozen again. A failure is kept and stops it."""
        self.process.thaw()
        try:
            yield
        except _FAILURES as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.failures.append(self.failure)
            self.process.stop()
            self.num_killed += self.process.num_killed
            if isinstance(error, WrongAnswers | Refused):
                self._ready = None  # a fault of the system, not an accident: it is not started again
        else:
            self.process.freeze()

    def stop(self) -> None:
        """Stop its processes."""
        if self.failure is None:
            self.process.stop()
            self.num_killed += self.process.num_killed

    async def start(self, records: Sequence[Record], expected: Sequence[Sequence[float]]) -> None:
        """Start it, or start it again, and compare its answers to the records alone with the expected ones."""
        if self.failure is not None:
            self.process = self._new()
            self.failure = None
        async with self._turn():
            host = f"127.0.0.1:{self.process.port}"
            started_s = await self.process.start(self.system.wire.request(host, [records[0]]))
            ready = await make_ready(self.process.url, self.system.wire, records, self.system.tolerance, alone_s=6.0)
            worst = max(difference(answer, expected[number]) for number, answer in ready.target.alone.items())
            self.facts |= {
                "start_s": rounded(started_s, 1),
                "idle_p50_ms": rounded(ready.idle_ms),
                "answers_checked": len(ready.target.alone),
                "distinct_answers": ready.distinct_answers,
                "max_abs_diff_expected": worst,
                "processes": len(self.process.members()),
                "rss_bytes": self.process.rss_bytes(),
            }
            if not worst <= self.system.tolerance:
                raise WrongAnswers(
                    f"alone its answers are {worst:.3g} away from the expected ones, {self.system.tolerance:g} allowed"
                )
            # A slow system was not asked every record alone. Under load every answer is checked all the same.
            alone = {**dict(enumerate(expected)), **ready.target.alone}
            self._ready = dataclasses.replace(ready, target=dataclasses.replace(ready.target, alone=alone))

    def _prober(self, generator: Generator, probing: ProbeSettings) -> Prober:
        assert self._ready is not None
        own = dataclasses.replace(probing, seed=probing.seed + 1000 * self._num_probes)
        self._num_probes += 1
        return Prober(generator, self._ready.target, own, self._ready.idle_ms, self.process.cpu_s)

    async def search(
        self, generator: Generator, probing: ProbeSettings, first: SearchSettings, again: SearchSettings, round_: int
    ) -> None:
        """One round's highest rate: a wide search the first time, then one around the median so far."""
        assert self._ready is not None
        if self._ready.idle_ms > probing.bound_ms:
            await self._measure_capacity(connections=2)
            self.max_rates.append(0.0)
            self.confidences.append(None)
            self.facts["note"] = "one request alone takes longer than the bound"
            return
        async with self._turn():
            prober = self._prober(generator, probing)
            try:
                if self.max_rate > 0:
                    found = await find_max_rate(prober.passes, self.max_rate, again)
                else:
                    capacity = await self._capacity(_CLOSED_LOOP_CONNECTIONS)
                    found = await find_max_rate(prober.passes, _START_SHARE * capacity, first)
                self.max_rates.append(found)
                self.confidences.append(_confidence_at(found, prober.probes))
            finally:
                self._keep(prober, "search", round_)

    async def _measure_capacity(self, connections: int) -> None:
        if "capacity_per_s" not in self.facts:
            async with self._turn():
                await self._capacity(connections)

    async def _capacity(self, connections: int) -> float:
        assert self._ready is not None
        seconds = max(_CLOSED_LOOP_S, 4 * self._ready.idle_ms / 1000)
        capacity = await answers_per_s(self._ready.target, connections, seconds)
        self.facts |= {"capacity_per_s": rounded(capacity, 1), "capacity_connections": connections}
        return capacity

    async def measure_at(
        self, generator: Generator, probing: ProbeSettings, rate: float, purpose: str, round_: int
    ) -> None:
        """Latency and CPU time at a rate that the system keeps."""
        async with self._turn():
            prober = self._prober(generator, probing)
            try:
                if (await prober.measure(rate))["void"]:
                    await prober.measure(rate)
            finally:
                self._keep(prober, purpose, round_)

    def _keep(self, prober: Prober, purpose: str, round_: int) -> None:
        origin = {"system": self.system.name, "round": round_, "purpose": purpose}
        self.probes += [{**origin, **probe} for probe in prober.probes]

    def values(self, purpose: str, *path: str) -> float | None:
        """The median, over the rounds, of one number of the probes made for `purpose`; void probes are left out."""
        found: list[float] = []
        for probe in self.probes:
            value: Any = probe
            for key in path:
                value = value.get(key)
            if probe["purpose"] == purpose and not probe["void"] and value is not None:
                found.append(value)
        return rounded(statistics.median(found)) if found else None


def _confidence_at(rate: float, probes: Sequence[Mapping[str, Any]]) -> float | None:
    """The confidence of the probe that passed at this rate; None where none did."""
    passed = [probe["confidence"] for probe in probes if probe["passed"] and probe["rate"] == rounded(rate)]
    return passed[-1] if passed else None
