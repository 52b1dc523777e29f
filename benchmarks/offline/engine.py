"""This engine against the library, one predict at a time: `python -m benchmarks.offline.engine --help`.

In one process, without server or queue. Both sides hold the same context and checkpoint and are given the same encoded
rows; `library` is its predict with the KV cache (`fit_mode="fit_with_cache"`) in the precision that it picks itself.
The library is called with the rows as they are, this engine pads them to its row bucket. Every flag that takes several
values is an axis of a grid, and every point of the grid a cell.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import envelope, write_json
from benchmarks.offline.architectures import ARCHITECTURES, large_contexts_on_cpu, synthetic_model, write_checkpoint
from benchmarks.offline.cells import (
    Case,
    LibrarySide,
    OurSide,
    Rounds,
    case_facts,
    compare_cached,
    compare_uncached,
    mix_rows,
    progress,
)
from benchmarks.offline.memory import peak_device_bytes
from benchmarks.percentiles import rounded
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings, StoreSettings
from serve.store import FolderStore

Run = dict[str, Any]
Configs = Mapping[str, Mapping[str, Any]]
"""Network sizes by architecture, where they are not the full ones."""

DEMO = "demo"


@dataclass(frozen=True)
class EngineOptions:
    """One run's whole configuration. What is a tuple is an axis of the grid."""

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
        """Every way in which ours is measured on a device. No difference fails the load here: it is a result."""
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
        return Rounds(self.pairs, self.uncached_pairs, self.warmups, self.cell_seconds)


def cases(options: EngineOptions, folder: Path, configs: Configs) -> Iterator[Case]:
    """What is measured, one after another; random checkpoints are written to `folder`."""
    for arch in options.arch:
        if arch == DEMO:
            yield demo_case(options)
            continue
        progress(f"{arch}: drawing weights")
        checkpoint = write_checkpoint(arch, folder, options.seed, configs.get(arch))
        for size in itertools.product(options.context_rows, options.features, options.members):
            name = "{} {}x{}, {} members".format(arch, *size)
            yield Case(name, arch, synthetic_model(name, checkpoint, *size, seed=options.seed))
        checkpoint.unlink()


def demo_case(options: EngineOptions) -> Case:
    """One model of a repository, with the context and the members that it has."""
    path = Path(options.repository) if options.repository else None
    definition = FolderStore(StoreSettings(model_repository=path)).load(options.model)
    context = dataclasses.replace(definition.context, class_priors=None)  # the library knows no prior correction
    return Case(options.model, DEMO, dataclasses.replace(definition, context=context), is_compared_uncached=True)


def run_engine(
    options: EngineOptions, configs: Configs | None = None, on_result: Callable[[Run], None] | None = None
) -> Run:
    """Every cell of the grid; the run as JSON. `on_result` is called after each cell with the run so far."""
    engines = {
        device: [(settings, TabPFNEngine(settings, max(options.rows))) for settings in options.settings(device)]
        for device in options.device
    }  # first, so that a device that is not there is known at once
    run = envelope("offline-engine", dataclasses.asdict(options), [], torch_threads=None, cases={})
    run["torch_threads"] = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, large_contexts_on_cpu():
        for case in cases(options, Path(folder), configs or {}):
            for device in options.device:
                # one that is fitted on several devices has facts of each, so each has a name
                name = case.name if len(options.device) == 1 else f"{case.name}, {device}"
                named = dataclasses.replace(case, name=name)
                for result in measure_case(named, device, engines[device], options, run["cases"]):
                    run["results"].append(result)
                    if on_result:
                        on_result(run)
    return run


def measure_case(
    case: Case,
    device: str,
    engines: Sequence[tuple[EngineSettings, TabPFNEngine]],
    options: EngineOptions,
    facts: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Cells of one case on one device; what is the same in all of them goes to `facts`, by the case's name."""
    side = LibrarySide(case, device)
    facts[case.name] = known = case_facts(case, side)
    queries = {num_rows: mix_rows(side.context_rows, num_rows, options.seed) for num_rows in options.rows}
    exact = side.exact_answers(queries)
    uncached = [side.uncached("auto"), side.uncached("float32")] if case.is_compared_uncached else []
    for number, (settings, engine) in enumerate(engines, start=1):
        with side.lent(is_last=number == len(engines)):
            ours = OurSide(engine, settings, case.definition)
        known.setdefault("fit_s", rounded(ours.fit_s + (side.exact_fit_s if side.was_borrowed else 0)))
        common = {"case": case.name, **{axis: known[axis] for axis in AXES}, **ours.facts(side)}
        for num_rows, rows in queries.items():
            result = common | compare_cached(ours.predict, side.predict, exact[num_rows], rows, options.rounds)
            if uncached:
                result |= compare_uncached(ours.predict, uncached[0], uncached[1], rows, options.uncached_pairs)
            yield result | {"peak_device_bytes": peak_device_bytes(device)}
            progress(f"{case.name}, {settings.inference_precision}, {num_rows} rows: done")
        del ours
        engine.close()
        gc.collect()


AXES = ("arch", "context_rows", "features", "members")
TABLE = (
    "case", "device", "precision", "backend", "rows", "ours_ms", "library_ms", "speedup", "max_abs_diff",
    "library_abs_diff", "uncached_ms", "speedup_uncached",
)  # fmt: skip


def table(run: Mapping[str, Any]) -> str:
    """One line per cell; columns that no cell has are left out."""
    names = [name for name in TABLE if any(name in result for result in run["results"])]
    rows = [names, *([_cell(result.get(name)) for name in names] for result in run["results"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def parse(arguments: Sequence[str] | None) -> tuple[EngineOptions, Path | None, Path | None]:
    """The run's options, and where its JSON and its plot go."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offline.engine", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = EngineOptions()

    def add(name: str, help: str, **more: Any) -> None:
        value = getattr(default, name)
        several = {"nargs": "+", "type": type(value[0])} if isinstance(value, tuple) else {"type": type(value)}
        parser.add_argument("--" + name.replace("_", "-"), default=value, help=help, **{**several, **more})

    add("arch", f"{DEMO}: a model of the repository; else full-size random weights", choices=[DEMO, *ARCHITECTURES])
    add("context_rows", f"of the synthetic contexts; {DEMO} has its own")
    add("features", "of the synthetic contexts")
    add("members", "of the ensembles on synthetic contexts")
    add("rows", "query rows of one predict")
    add("device", "cpu or cuda:N, for both sides")
    add("precision", "of this engine; the library picks its own")
    add("backend", "of this engine; `library` measures what our preparation of rows costs or saves")
    add("model", "a model of the repository")
    add("repository", "folder of models; else the demo inside the package", type=str)
    add("pairs", "rounds against the library's cached predict")
    add("uncached_pairs", f"rounds against its uncached predict, which is slow; {DEMO} only")
    add("warmups", "uncounted rounds before")
    add("cell_seconds", "time for one cell's rounds: a slow cell runs fewer pairs, at least three")
    add("threads", "threads of torch, for both sides")
    add("seed", "of weights, contexts and query rows")
    parser.add_argument("--json", type=Path, help="write the run here, after every cell")
    parser.add_argument("--plot", type=Path, help="draw it here (PNG)")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    to_json, to_plot = given.pop("json"), given.pop("plot")
    return EngineOptions(**given), to_json, to_plot


def main(arguments: Sequence[str] | None = None) -> int:
    options, to_json, to_plot = parse(arguments)
    run = run_engine(options, on_result=(lambda run: write_json(run, to_json)) if to_json else None)
    if to_plot:
        from benchmarks.report import plot

        plot(run, to_plot)
    print(table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
