"""The grid of an offline run: its options, its cases, and the loop over its cells."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import envelope
from benchmarks.offline.architectures import large_contexts_on_cpu, synthetic_model, write_checkpoint
from benchmarks.offline.cells import Rounds, compare_cached, compare_uncached
from benchmarks.offline.memory import peak_device_bytes
from benchmarks.offline.sides import Case, EngineSide, Say, TabPFNSide, case_facts, mix_rows
from benchmarks.percentiles import rounded
from benchmarks.progress import Progress
from serve.core.errors import UnknownModel
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings, StoreSettings
from serve.store import FolderStore

Run = dict[str, Any]
Configs = Mapping[str, Mapping[str, Any]]
"""Network sizes by architecture, to replace the full ones."""
Engines = Sequence[tuple[EngineSettings, TabPFNEngine]]
"""Of one device, with the settings of each."""

DEMO = "demo"
AXES = ("arch", "context_rows", "features", "members")
"""Facts of a case that every cell repeats."""


@dataclass(frozen=True)
class EngineOptions:
    """The whole configuration of one run. Every tuple is an axis of the grid."""

    arch: tuple[str, ...] = (DEMO,)
    context_rows: tuple[int, ...] = (1_000,)
    features: tuple[int, ...] = (30,)
    members: tuple[int, ...] = (8,)
    rows: tuple[int, ...] = (1, 8, 32, 100)
    device: tuple[str, ...] = ("cpu",)
    precision: tuple[str, ...] = ("float32",)
    backend: tuple[str, ...] = ("compiled",)
    model: str = "fraud"
    repository: str | None = None
    pairs: int = Rounds.pairs
    uncached_pairs: int = Rounds.uncached_pairs
    warmups: int = Rounds.warmups
    cell_seconds: float = Rounds.cell_seconds
    threads: int = 1
    seed: int = 1

    def settings(self, device: str) -> list[EngineSettings]:
        """The engine's settings, one for each backend and precision. Here a difference is a result, not an error."""
        return [
            EngineSettings(
                device=device,
                num_threads=self.threads,
                inference_precision=precision,
                backend=backend,
                parity_tolerance=1,
            )
            for backend, precision in itertools.product(self.backend, self.precision)
        ]

    @property
    def rounds(self) -> Rounds:
        """How often a cell is repeated."""
        return Rounds(self.pairs, self.uncached_pairs, self.warmups, self.cell_seconds)

    @property
    def num_cells(self) -> int:
        """Cells of the whole grid."""
        sizes = len(self.context_rows) * len(self.features) * len(self.members)
        num_cases = sum(1 if arch == DEMO else sizes for arch in self.arch)
        return num_cases * len(self.device) * len(self.backend) * len(self.precision) * len(self.rows)


def cases(options: EngineOptions, folder: Path, configs: Configs, say: Say = lambda _: None) -> Iterator[Case]:
    """The contexts to measure, one after another; random checkpoints are written to `folder`."""
    for arch in options.arch:
        if arch == DEMO:
            yield demo_case(options)
            continue
        say(f"{arch}: drawing random weights")
        checkpoint = write_checkpoint(arch, folder, options.seed, configs.get(arch))
        for size in itertools.product(options.context_rows, options.features, options.members):
            name = "{} {}x{}, {} members".format(arch, *size)
            yield Case(name, arch, synthetic_model(name, checkpoint, *size, seed=options.seed))
        checkpoint.unlink()


def demo_case(options: EngineOptions) -> Case:
    """A model of the repository with its own context and members. Raises UnknownModel with the names that exist."""
    path = Path(options.repository) if options.repository else None
    if path is not None and not path.is_dir():
        raise UnknownModel(f"--repository {path}: there is no such folder")
    store = FolderStore(StoreSettings(model_repository=path))
    try:
        definition = store.load(options.model)
    except UnknownModel as error:
        raise UnknownModel(f"{error}; --model can be: {', '.join(store.names()) or 'nothing'}") from error
    context = dataclasses.replace(definition.context, class_priors=None)  # tabpfn corrects no priors
    return Case(options.model, DEMO, dataclasses.replace(definition, context=context), is_compared_uncached=True)


def run_engine(
    options: EngineOptions, configs: Configs | None = None, on_result: Callable[[Run], None] | None = None
) -> Run:
    """Measure every cell of the grid; the run as JSON. `on_result` gets the run so far after each cell."""
    engines = {
        device: [(settings, TabPFNEngine(settings, max(options.rows))) for settings in options.settings(device)]
        for device in options.device
    }  # first, so that a missing device ends the run at once
    run = envelope("offline-engine", dataclasses.asdict(options), [], torch_threads=None, cases={})
    run["torch_threads"] = torch.get_num_threads()
    progress = Progress(options.num_cells, "cells")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, large_contexts_on_cpu():
        for case in cases(options, Path(folder), configs or {}, progress.say):
            for device in engines:
                # the facts of a case differ between devices, so each device has a case of its own
                name = case.name if len(engines) == 1 else f"{case.name}, {device}"
                named = dataclasses.replace(case, name=name)
                for result in measure_case(named, device, engines[device], options, run["cases"], progress.say):
                    run["results"].append(result)
                    if on_result:
                        on_result(run)
                    progress.step(f"{name}, {result['backend']}, {result['precision']}, {result['rows']} rows")
    return run


def measure_case(
    case: Case,
    device: str,
    engines: Engines,
    options: EngineOptions,
    facts: dict[str, Any],
    say: Say = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """The cells of one case on one device. Facts that all of them share go to `facts`, by the case's name."""
    side = TabPFNSide(case, device, say)
    facts[case.name] = known = case_facts(case, side)
    queries = {num_rows: mix_rows(side.context_rows, num_rows, options.seed) for num_rows in options.rows}
    exact = side.exact_answers(queries)
    uncached = [side.uncached("auto"), side.uncached("float32")] if case.is_compared_uncached else []
    for number, (settings, engine) in enumerate(engines, start=1):
        with side.lent(is_last=number == len(engines)):
            tested = EngineSide(engine, settings, case.definition, say)
        known.setdefault("fit_s", rounded(tested.fit_s + (side.exact_fit_s if side.was_borrowed else 0)))
        common = {"case": case.name, **{axis: known[axis] for axis in AXES}, **tested.facts()}
        for num_rows, rows in queries.items():
            result = common | compare_cached(tested.predict, side.predict, exact[num_rows], rows, options.rounds)
            if uncached:
                result |= compare_uncached(tested.predict, uncached[0], uncached[1], rows, options.uncached_pairs)
            yield result | {"peak_device_bytes": peak_device_bytes(device)}
        del tested
        engine.close()
        gc.collect()
