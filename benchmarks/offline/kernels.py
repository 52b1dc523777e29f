"""Count the kernels of one forward pass, and say where its time goes on a GPU, without a GPU.

The engine's forward pass runs on the tests' pretend CUDA device, which counts kernels, bytes and multiplications. The
times by GPU follow from assumptions, which the JSON states (`gpus`); no time is measured. Run it in the repository's
root. Weights are random. A large context follows from two smaller ones that are counted: with 30 columns, contexts of
304 and 464 rows.

An idle core takes about 20 s for demo, and one to two minutes for v2 or v3_5 at full size, whatever the context. v3_5
takes 9 GB of memory.

examples:
  python -m benchmarks.offline.kernels --arch demo v2 v3_5 --rows 1 --precision bfloat16 --json run.json --plot run.png
  python -m benchmarks.offline.kernels --arch v3_5 --context-rows 10000 --rows 1 32 256 --precision float32 bfloat16
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command_line import add_outputs, check_outputs, command_parser, positive, write_outputs
from benchmarks.machine import envelope
from benchmarks.offline import gpus
from benchmarks.offline.architectures import ARCHITECTURES, large_contexts_on_cpu, synthetic_model, write_checkpoint
from benchmarks.offline.grid import DEMO, Configs, EngineOptions, Run, demo_case
from benchmarks.offline.launches import capability_of, count_launches, extend, fit
from benchmarks.progress import Progress
from serve.core import ModelDefinition, Task
from serve.core.errors import ServeError

if TYPE_CHECKING:
    from pretend_cuda import Launch

TIMES = ("bytes", "arithmetic", "launches", "estimate")
"""As in `gpus.times_ms`."""
PRECISIONS = ("float32", "bfloat16", "float16")


def counted_rows(features: int) -> tuple[int, int]:
    """The contexts from which a larger one is extended.

    Both are so large that preprocessing gives as many columns as for any larger one, and keys need no padding. In v3
    the columns still differ by a few, at random. The distance keeps what this adds to a large context below 0.1 %.
    """
    near = 16 * (10 * features // 16 + 1)
    return near, near + 160


@dataclass(frozen=True)
class KernelOptions:
    """The whole configuration of one run. Every tuple is an axis of the grid."""

    arch: tuple[str, ...] = (DEMO,)
    rows: tuple[int, ...] = (1,)
    precision: tuple[str, ...] = ("bfloat16",)
    task: str = "classification"
    context_rows: int = 1_000
    features: int = 30
    members: int = 8
    seed: int = 1


Counted = Mapping[tuple[str, int], Sequence["Launch"]]
"""The kernels by precision and number of rows."""
Facts = dict[str, Any]
"""What all results of an architecture share."""


def run_kernels(options: KernelOptions, configs: Configs | None = None) -> Run:
    """Count every point of the grid; the run as JSON. `configs` replaces full sizes of networks."""
    assumptions = {name: dataclasses.asdict(gpu) for name, gpu in gpus.GPUS.items()}
    shares = {"cache_speedup": gpus.CACHE_SPEEDUP, "attention_share": gpus.ATTENTION_SHARE}
    run = envelope("offline-kernels", dataclasses.asdict(options), [], gpus=assumptions, assumptions=shares)
    progress = Progress(len(options.arch), "architectures")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, large_contexts_on_cpu():
        for arch in options.arch:
            facts, counted = _count(arch, options, Path(folder), (configs or {}).get(arch))
            run["results"] += [
                {**facts, "rows": num_rows, **describe(launches, precision)}
                for (precision, num_rows), launches in counted.items()
            ]
            progress.step(arch)
    return run


def describe(launches: Sequence[Launch], precision: str) -> dict[str, Any]:
    """The facts of a forward pass, and its times on each GPU."""
    return {
        "precision": precision,
        "capability": list(capability_of(precision)),
        "kernels": len(launches),
        "kinds": dict(Counter(map(gpus.kind_of, launches))),
        "operators": dict(Counter(launch.name for launch in launches).most_common()),
        "bytes": sum(launch.read + launch.written for launch in launches),
        "held_bytes": sum(launch.held for launch in launches),
        "flops": sum(launch.flops for launch in launches),
        "times_ms": {name: gpus.times_ms(launches, gpu, precision) for name, gpu in gpus.gpus_of(precision).items()},
    }


def _count(arch: str, options: KernelOptions, folder: Path, config: Mapping[str, Any] | None) -> tuple[Facts, Counted]:
    """An architecture's facts, and its kernels."""
    if arch == DEMO:
        definition = demo_case(EngineOptions()).definition
        context = definition.context
        facts = _facts(arch, context.task, context.num_rows, len(context.columns), definition.options.num_members)
        return facts, _count_definition(definition, options)
    task = Task(options.task)
    facts = _facts(arch, task, options.context_rows, options.features, options.members)
    checkpoint = write_checkpoint(arch, folder, options.seed, config, task)

    def count(context_rows: int) -> Counted:
        sizes = (context_rows, options.features, options.members)
        return _count_definition(synthetic_model(arch, checkpoint, *sizes, options.seed, task), options)

    near_rows, far_rows = counted_rows(options.features)
    if options.context_rows <= far_rows:
        return facts, count(options.context_rows)
    near, far = count(near_rows), count(far_rows)
    return facts, {key: extend(near[key], near_rows, far[key], far_rows, options.context_rows) for key in far}


def _count_definition(definition: ModelDefinition, options: KernelOptions) -> Counted:
    fitted = fit(definition)
    return {
        (precision, num_rows): launches
        for precision in options.precision
        for num_rows, launches in count_launches(fitted, precision, options.rows, options.seed).items()
    }


def _facts(arch: str, task: Task, context_rows: int, features: int, members: int) -> Facts:
    return {
        "arch": arch, "task": str(task), "context_rows": context_rows, "features": features, "members": members,
    }  # fmt: skip


def table(run: Mapping[str, Any]) -> str:
    """One line for each result and GPU."""
    names = ("arch", "context_rows", "precision", "rows", "kernels", "MB", "gpu", *TIMES)
    lines = [names]
    for result in run["results"]:
        for gpu, times in result["times_ms"].items():
            facts = [str(result[name]) for name in names[:5]]
            lines.append((*facts, f"{result['bytes'] / 1e6:.1f}", gpu, *(f"{times[name]:.3f}" for name in TIMES)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = command_parser("benchmarks.offline.kernels", __doc__)
    default = KernelOptions()

    def add(name: str, help: str, **more: Any) -> None:
        made.add_argument("--" + name.replace("_", "-"), default=getattr(default, name), help=help, **more)

    archs, tasks = [DEMO, *ARCHITECTURES], [str(task) for task in Task]
    add("arch", f"{DEMO}, or a TabPFN architecture; of {', '.join(archs)}", nargs="+", choices=archs, metavar="NAME")
    add("rows", "query rows of one forward pass", nargs="+", type=positive, metavar="N")
    add("precision", f"of {', '.join(PRECISIONS)}", nargs="+", choices=PRECISIONS, metavar="NAME")
    add("task", f"one of {', '.join(tasks)}; {DEMO} has its own", choices=tasks, metavar="NAME")
    add("context_rows", f"labelled rows of the context; {DEMO} has its own", type=positive, metavar="N")
    add("features", f"columns of the context; {DEMO} has its own", type=positive, metavar="N")
    add("members", f"ensemble members; {DEMO} has its own", type=positive, metavar="N")
    add("seed", "of weights, contexts and query rows", type=int, metavar="N")
    add_outputs(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and print the table; the exit status."""
    made = parser()
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(made.parse_args(arguments)).items()
    }
    to_json, to_plot = given.pop("json"), given.pop("plot")
    check_outputs(made, to_json, to_plot)
    try:
        run = run_kernels(KernelOptions(**given))
    except (ServeError, ValueError) as error:
        print(f"{made.prog}: {error}", file=sys.stderr)
        return 2
    write_outputs(run, to_json, to_plot)
    print(table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
