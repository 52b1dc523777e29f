"""Look at the engine on a GPU: does each model start, how long is a bucket, and where does the time go?

Each model starts as the server starts it: fit, warm-up of every row bucket, comparison with tabpfn. Here a difference
is a number, not an end. Then some numbers of rows are measured: the whole predict, the host's part of it, the replay of
the CUDA graph, the same forward pass without a graph, and its kernels. At last each of torch's attention kernels is
recorded and replayed. What fails is written down, and the next one follows. On a CPU it does what a CPU can do.

example:
  python -m benchmarks.offline.probe --device cuda:0 --budget 150 --json probe.json
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, supported_activities

from benchmarks.command_line import command_parser, positive
from benchmarks.machine import envelope, write_json
from benchmarks.offline.architectures import large_contexts_on_cpu, synthetic_model, write_checkpoint
from benchmarks.offline.grid import DEMO, EngineOptions, demo_case
from benchmarks.offline.sides import mix_rows
from benchmarks.percentiles import rounded
from serve.core import Batch, Matrix, ModelDefinition
from serve.core.row_buckets import bucket_of, row_buckets
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import warm_up
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.execution.recorded import RecordedCompute
from serve.settings import EngineSettings

PRECISIONS = ("float32", "auto")
ROWS = (1, 32, 256)
SMALL_V2 = {"emsize": 32, "nlayers": 1, "nhead": 2, "max_num_classes": 10}
ATTENTIONS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
Facts = dict[str, Any]


class Probe:
    """One model in one precision on one device.

    Args:
        max_rows: rows of the largest bucket.
        repeats: how often a time is taken; the median counts.
    """

    def __init__(
        self, definition: ModelDefinition, precision: str, device: str, max_rows: int, repeats: int = 20
    ) -> None:
        self._definition, self._device = definition, torch.device(device)
        self._buckets, self._repeats = row_buckets(max_rows, device), repeats
        settings = EngineSettings.model_validate(
            {"device": device, "inference_precision": precision, "parity_tolerance": 1}
        )
        self._engine = TabPFNEngine(settings, max_rows)

    def run(self) -> Iterator[Facts]:
        """The facts, part by part, so that those before a failure are kept."""
        yield from self._start()
        rows = [num_rows for num_rows in ROWS if num_rows <= self._buckets[-1]]
        for num_rows in rows:
            yield {f"rows_{num_rows}": self._measure(num_rows)}
        if self._recorded is not None:
            for name, backend in ATTENTIONS.items():
                yield {f"attention_{name}": self._try_attention(backend, rows[:2])}

    def _start(self) -> Iterator[Facts]:
        before, began = self._taken_bytes(), time.perf_counter()
        self._context: TabPFNContext = self._engine.fit(self._definition)
        fitted = self._taken_bytes()
        yield {"fit_s": rounded(time.perf_counter() - began), "model_bytes": fitted - before}
        canaries, began = canary_rows(self._context.encode_context()), time.perf_counter()
        seconds = warm_up(self._engine, self._context, canaries, self._buckets, 1)
        self._buckets = tuple(sorted(seconds))  # those that fit into the memory
        yield {
            "backend": self._context.backend,
            "warm_up_s": rounded(time.perf_counter() - began),
            "warm_up_bytes": self._taken_bytes() - fitted,
            "bucket_ms": {str(rows): rounded(1e3 * each) for rows, each in sorted(seconds.items())},
        }
        yield {
            "largest_difference": check_parity(self._engine, self._context, canaries[: self._buckets[-1]], 1),
            "largest_difference_between_buckets": self._compare_buckets(canaries),
        }

    def _compare_buckets(self, canaries: Matrix) -> float:
        def answer(num_rows: int) -> Matrix:
            return self._engine.predict(Batch(self._context, np.resize(canaries, (num_rows, canaries.shape[1]))))

        largest = answer(self._buckets[-1])
        return max(float(np.abs(answer(rows) - largest[:rows]).max()) for rows in self._buckets)

    @property
    def _recorded(self) -> RecordedCompute | None:
        compute = getattr(self._context._compiled, "_compute", None)
        return compute if isinstance(compute, RecordedCompute) else None

    def _measure(self, num_rows: int) -> Facts:
        batch = Batch(self._context, mix_rows(self._context.encode_context(), num_rows, seed=1))
        facts: Facts = {"predict_ms": self._median_ms(lambda: self._engine.predict(batch))}
        if self._recorded is None:
            return facts
        launched = [self._engine.launch(batch)]
        facts["launch_ms"] = self._median_ms(lambda: launched.append(self._engine.launch(batch)), launched.clear)
        recording, compute = self._recording(num_rows), self._recorded._compute
        if recording is not None:
            with torch.inference_mode():
                facts["replay_ms"] = self._median_ms(recording.graph.replay)
                facts["eager_ms"] = self._median_ms(lambda: compute(recording.inputs))
                facts["kernels"] = self._profile(lambda: compute(recording.inputs))
        return facts

    def _recording(self, num_rows: int) -> Any:
        """The recording that answers so many rows; None where recording it failed."""
        assert self._recorded is not None
        bucket = bucket_of(num_rows, self._buckets)
        found = [each for shapes, each in self._recorded._recordings.items() if shapes[0][-2] == bucket]
        return found[0] if found else None

    def _try_attention(self, backend: SDPBackend, rows: Sequence[int]) -> Facts:
        """Milliseconds of a replay by the number of rows, or the error."""
        assert self._recorded is not None
        again, facts = RecordedCompute(self._recorded._compute), {}
        try:
            with torch.inference_mode(), sdpa_kernel(backend):
                for num_rows in rows:
                    again(self._recording(num_rows).inputs)
                    recorded = next(reversed(again._recordings.values()))
                    facts[f"replay_ms_{num_rows}"] = recorded and self._median_ms(recorded.graph.replay)
        except Exception as error:
            return {**facts, "error": _short(error)}
        return facts

    def _profile(self, work: Callable[[], object]) -> Facts:
        """Kernels by name, and the time for which the GPU computed."""
        if ProfilerActivity.CUDA not in supported_activities():
            return {"error": "this torch has no profiler of GPUs"}
        try:
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                work()
                self._wait()
            kernels = [event for event in seen.events() if str(event.device_type).endswith("CUDA")]
        except Exception as error:
            return {"error": _short(error)}
        names = Counter(event.name[:80] for event in kernels)
        busy_us = sum(event.device_time for event in kernels)
        return {"count": len(kernels), "busy_ms": rounded(busy_us / 1e3), "most_frequent": dict(names.most_common(12))}

    def _median_ms(self, work: Callable[[], object], after: Callable[[], object] = lambda: None) -> float | None:
        """Median time of `work` until the device is done; `after` is called behind each and is not timed."""
        times = []
        for _ in range(self._repeats):
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            times.append(1e3 * (time.perf_counter() - began))
            after()
        return rounded(statistics.median(times), 4)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _taken_bytes(self) -> int:
        """Memory of the GPU in use, by all of its users; 0 on a CPU."""
        if self._device.type != "cuda":
            return 0
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def models(folder: Path, is_small: bool) -> Iterator[tuple[str, Callable[[], ModelDefinition]]]:
    """The models to probe, each by its name; `is_small` leaves out those of full size, which take minutes on a CPU."""
    yield DEMO, lambda: demo_case(EngineOptions()).definition
    if is_small:
        yield "v2", lambda: synthetic_model("v2", write_checkpoint("v2", folder, 1, SMALL_V2), 60, 6, 2, seed=1)
        return
    for arch in ("v3_5", "v2"):
        yield arch, lambda arch=arch: synthetic_model(arch, write_checkpoint(arch, folder, 1), 1_000, 30, 8, seed=1)  # type: ignore[misc]


def probe(device: str, max_rows: int, is_small: bool, budget_s: float, to_json: Path | None) -> dict[str, Any]:
    """Probe every model; the run as JSON, which is written after every model. No model starts after `budget_s`."""
    config = {"device": device, "max_rows": max_rows, "is_small": is_small, "budget_s": budget_s}
    run = envelope("offline-probe", config, [], gpu=describe_gpu(device))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="probe-") as folder, large_contexts_on_cpu():
        for name, load in models(Path(folder), is_small):
            for precision in PRECISIONS:
                facts: Facts = {"model": name, "precision": precision}
                run["results"].append(facts)
                if time.monotonic() - began > budget_s:
                    facts["skipped"] = "out of time"
                    continue
                try:
                    for part in Probe(load(), precision, device, max_rows, 3 if is_small else 20).run():
                        facts.update(part)
                        print(name, precision, part, flush=True)
                except Exception as error:
                    traceback.print_exc()
                    facts["error"] = _short(error)
                if to_json:
                    write_json(run, to_json)
    return run


def describe_gpu(device: str) -> Facts | None:
    """Versions and limits that decide which kernels run; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "total_bytes": torch.cuda.mem_get_info(device)[1],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe, and print what was found; 1 where something failed."""
    parser = command_parser("benchmarks.offline.probe", __doc__)
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--max-rows", type=positive, default=256, metavar="N", help="rows of the largest bucket")
    parser.add_argument("--small", action="store_true", help="demo and a tiny v2 with few rows, for a CPU")
    parser.add_argument("--budget", type=float, default=150, metavar="S", help="no model starts after so many seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found, after every model")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} sees no GPU on this machine: pass --device cpu --small, or run it on one"
        )
    max_rows = min(given.max_rows, 8) if given.small else given.max_rows
    run = probe(given.device, max_rows, given.small, given.budget, given.json)
    return int(any("error" in facts for facts in run["results"]))


if __name__ == "__main__":
    sys.exit(main())
