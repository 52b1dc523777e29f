"""This engine against the library, one predict at a time: `python -m benchmarks.offline.engine --help`.

In one process, without server or queue. Both sides hold the same context and checkpoint and are given the same encoded
rows; `library` is its predict with the KV cache (`fit_mode="fit_with_cache"`), `uncached` the one without
(`"fit_preprocessors"`). The library is called with the rows as they are, this engine pads them to its row bucket.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.machine import envelope, write_json
from benchmarks.offline.pairs import measure_pairs
from benchmarks.percentiles import rounded
from serve.config import EngineSettings, StoreSettings
from serve.core import Batch, Matrix, ModelDefinition
from serve.engine import library
from serve.engine.engine import TabPFNEngine
from serve.engine.row_encoder import RowEncoder
from serve.store import FolderStore

Predict = Callable[[Matrix], Matrix]


@dataclass(frozen=True)
class EngineOptions:
    """One run's whole configuration."""

    model: str = "fraud"
    repository: str | None = None
    rows: tuple[int, ...] = (1, 8, 32, 100)
    pairs: int = 7
    uncached_pairs: int = 3
    warmups: int = 2
    threads: int = 1
    seed: int = 1

    def settings(self) -> EngineSettings:
        return EngineSettings(device="cpu", num_threads=self.threads)


@dataclass(frozen=True)
class Case:
    """One context to be measured. Its answers are compared raw, so it states no class priors."""

    name: str
    definition: ModelDefinition


def cases(options: EngineOptions) -> Iterator[Case]:
    """What is measured: one model of the repository."""
    path = Path(options.repository) if options.repository else None
    definition = FolderStore(StoreSettings(model_repository=path)).load(options.model)
    context = dataclasses.replace(definition.context, class_priors=None)  # the library knows no prior correction
    yield Case(options.model, dataclasses.replace(definition, context=context))


def run_engine(options: EngineOptions) -> dict[str, Any]:
    """Every case at every number of rows; the run as JSON."""
    run = envelope("offline-engine", dataclasses.asdict(options), [], torch_threads=None, cases={})
    for case in cases(options):
        facts, results = measure_case(case, options)
        run["cases"][case.name] = facts
        run["results"] += results
    run["torch_threads"] = torch.get_num_threads()
    return run


def measure_case(case: Case, options: EngineOptions) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fit the case three ways, then time the predicts in pairs."""
    settings = options.settings()
    engine = TabPFNEngine(settings, max_batch_rows=max(options.rows))
    started = time.perf_counter()
    fitted = engine.fit(case.definition)
    fit_s = time.perf_counter() - started
    context_rows = fitted.encode_context()

    def ours(rows: Matrix) -> Matrix:
        return engine.predict(Batch(fitted, rows))

    cached = library_predict(case.definition, "fit_with_cache", settings)
    uncached = library_predict(case.definition, "fit_preprocessors", settings)
    results = []
    for num_rows in options.rows:
        rows = mix_rows(context_rows, num_rows, options.seed)
        results.append({"case": case.name, **compare_predicts(ours, cached, uncached, rows, options)})
        print(f"{case.name}, {num_rows} rows: done", file=sys.stderr, flush=True)
    engine.close()
    facts = {
        "version": case.definition.version,
        "checkpoint": case.definition.checkpoint_name,
        "task": str(case.definition.context.task),
        "context_rows": len(context_rows),
        "features": context_rows.shape[1],
        "outputs": fitted.num_outputs,
        "members": case.definition.options.num_members,
        "fit_s": rounded(fit_s),
    }
    return facts, results


def library_predict(
    definition: ModelDefinition, fit_mode: Literal["fit_with_cache", "fit_preprocessors"], settings: EngineSettings
) -> Predict:
    """The library's own predict of encoded rows, fitted on the same context."""
    context = definition.context
    names = [column.name for column in context.columns]
    records = [{name: context.cells[name][row] for name in names} for row in range(context.num_rows)]
    frame = library.context_frame(definition, RowEncoder(context.columns).read_records(records))
    fitted = library.build_estimator(definition, frame, fit_mode, settings.device, settings.inference_precision)
    estimator = library.on_matrices(fitted)
    return lambda rows: library.predict_outputs(estimator, rows)


def mix_rows(context_rows: Matrix, num_rows: int, seed: int) -> Matrix:
    """Query rows that are not the context's: each cell is drawn from its column of the context."""
    picked = np.random.default_rng(seed).integers(len(context_rows), size=(num_rows, context_rows.shape[1]))
    return np.take_along_axis(context_rows, picked, axis=0)


def compare_predicts(
    ours: Predict, cached: Predict, uncached: Predict, rows: Matrix, options: EngineOptions
) -> dict[str, Any]:
    """One cell of the result. Times are medians; a speed-up is the median of the pairs' ratios."""
    answer = ours(rows)
    by_cache = measure_pairs(lambda: ours(rows), lambda: cached(rows), options.pairs, warmups=options.warmups)
    by_plain = measure_pairs(lambda: ours(rows), lambda: uncached(rows), options.uncached_pairs, warmups=1)
    times = {
        "ours": by_cache.first_median_ms,
        "library": by_cache.second_median_ms,
        "uncached": by_plain.second_median_ms,
    }
    return {
        "rows": len(rows),
        **{f"{way}_ms": rounded(value) for way, value in times.items()},
        **{f"{way}_ms_per_row": rounded(value / len(rows), 4) for way, value in times.items()},
        "speedup": rounded(by_cache.speedup),
        "speedup_uncached": rounded(by_plain.speedup),
        "max_abs_diff": float(np.abs(answer - cached(rows)).max()),
        "max_abs_diff_uncached": float(np.abs(answer - uncached(rows)).max()),
        "pairs": options.pairs,
        "uncached_pairs": options.uncached_pairs,
        "pairs_ms": {
            "ours": [rounded(value) for value in by_cache.first_ms],
            "library": [rounded(value) for value in by_cache.second_ms],
            "uncached": [rounded(value) for value in by_plain.second_ms],
        },
    }


def table(run: dict[str, Any]) -> str:
    """One line per cell."""
    columns = ("case", "rows", "ours_ms", "library_ms", "uncached_ms", "speedup", "speedup_uncached", "max_abs_diff")
    rows = [columns, *(tuple(_cell(result[name]) for name in columns) for result in run["results"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offline.engine", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = EngineOptions()
    parser.add_argument("--model", default=default.model, help="a model of the repository")
    parser.add_argument("--repository", help="folder of models; else the demo inside the package")
    parser.add_argument("--rows", type=int, nargs="+", default=list(default.rows), help="query rows of one predict")
    parser.add_argument("--pairs", type=int, default=default.pairs, help="rounds against the library's cached predict")
    uncached_help = "rounds against its uncached predict, which is slow"
    parser.add_argument("--uncached-pairs", type=int, default=default.uncached_pairs, help=uncached_help)
    parser.add_argument("--warmups", type=int, default=default.warmups, help="uncounted rounds before")
    parser.add_argument("--threads", type=int, default=default.threads, help="threads of torch, for both sides")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the query rows")
    parser.add_argument("--json", type=Path, help="write the run here")
    parser.add_argument("--plot", type=Path, help="draw it here (PNG)")
    given = vars(parser.parse_args(arguments))
    to_json, to_plot = given.pop("json"), given.pop("plot")
    run = run_engine(EngineOptions(**{**given, "rows": tuple(given["rows"])}))
    if to_json:
        write_json(run, to_json)
    if to_plot:
        from benchmarks.report import plot

        plot(run, to_plot)
    print(table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
