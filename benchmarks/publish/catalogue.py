"""The published runs, and the section of the page that each belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import read_run
from benchmarks.machine import ROOT
from benchmarks.publish import engine, load, mixed, mlperf, overhead, peers, quality, simulation
from benchmarks.publish.markdown import Run

OUT = ROOT / "benchmarks" / "out"
"""Where benchmarks write. Git ignores it."""
RESULTS = ROOT / "benchmarks" / "results"
"""The published JSON and plots."""


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        question: what was measured, in one or two sentences.
        kind: of the runs, as their JSON states it.
        names: the published runs, without `.json`.
        write: the section's body from all runs by name.
        reading: how to read the section; may be empty.
    """

    title: str
    question: str
    kind: str
    names: tuple[str, ...]
    write: Callable[[Mapping[str, Run]], str]
    reading: str = ""


_ENGINE = ("engine-full-size", "offline-engine")
_MIXED = ("mixed", "mixed-mosec-compiled-engine", "mixed-litserve-compiled-engine")

SECTIONS = (
    Section(
        "The engine in one process",
        "How long does one predict call take in the compiled backend, and how long in the tabpfn package with the "
        "same weights and context? No server takes part.",
        "offline-engine",
        _ENGINE,
        lambda runs: engine.section(runs, _ENGINE),
        "`tabpfn` is the package's predict with its KV cache, in the precision that it picks itself. A speed-up in "
        "brackets is the median of the pairs' ratios. A difference is the largest difference of an output from "
        "tabpfn's cached float32 answer to the same batch. TabPFN v2's preset adds a column that tells equal rows of a "
        "batch apart; tabpfn draws it anew for some rows of a batch, and the compiled backend gives every row its "
        "answer alone. Memory of the compiled backend is not measured: the bytes are tabpfn's (until 29 November "
        "2026 the JSON gave them for the compiled backend, by a fault that is mended).",
    ),
    Section(
        "Latency under load",
        "How long do callers wait when requests arrive at a given rate, whatever the server does (an open loop)?",
        "online-load",
        ("online-load",),
        lambda runs: load.section(runs["online-load"], "online-load"),
        "Latency counts from the scheduled send. Server and load generator share the machine's cores. `~`: too few "
        "requests for this percentile.",
    ),
    Section(
        "MLPerf's load generator as a second judge",
        "Does LoadGen, which draws its own schedule and takes its own times, call the rate valid?",
        "online-mlperf",
        ("mlperf",),
        lambda runs: mlperf.section(runs["mlperf"], "mlperf"),
    ),
    Section(
        "Beside other servers",
        "Which rate of one-row requests does each server keep with the same model on the same machine?",
        "online-peers",
        ("peers",),
        lambda runs: peers.section(runs["peers"], "peers"),
        "Engine `tabpfn` is the package's classifier with its KV cache. Engine `compiled` is this server's engine, "
        "which the other servers were given too: between rows with that engine, batching and request path make the "
        "difference.",
    ),
    Section(
        "Bulk requests and overload",
        "What do bulk requests do to the latency of interactive requests? How much goodput is left when twice the "
        "capacity is offered?",
        "online-mixed",
        _MIXED,
        lambda runs: mixed.section(runs, _MIXED),
        "Free capacity: the rows per second that bulk requests get alone, less the share of the interactive requests. "
        "More than 100 % of it means that interactive requests got less than their share.",
    ),
    Section(
        "The server's own cost",
        "How much does the server add to the engine inside it?",
        "online-overhead",
        ("overhead",),
        lambda runs: overhead.section(runs["overhead"], "overhead"),
    ),
    Section(
        "Quality of the demo checkpoint",
        "How well does the embedded demo checkpoint predict data sets that it never saw?",
        "training-evaluate",
        ("evaluate",),
        lambda runs: quality.section(runs["evaluate"], "evaluate"),
        "The checkpoint is a demonstration, not a rival of Prior Labs' checkpoints. It loses to logistic regression on "
        "near-linear tables (diabetes, breast_cancer), and to every baseline on ten classes. It never saw the card "
        "simulator, but three fifths of its last training tables were payments of random design, with columns of the "
        "same kind.",
    ),
    Section(
        "Batching policies in simulation",
        "How does the batching policy compare with those of other servers, with the same arrivals on the same device? "
        "The clock is virtual; there is no HTTP, no encoding and no real device.",
        "simulation",
        ("simulation",),
        lambda runs: simulation.section(runs["simulation"], "simulation"),
        "Load 100 % is the capacity of the device in full batches. p99 covers answers and expired requests; refused "
        "requests are in no percentile, but they lower the share answered in time. Callers cut up requests that a "
        "server would reject as too large. Left out: HTTP, the event loop, the back-off of Ray's router, several "
        "models at once on one GPU.",
    ),
)
NAMES = tuple(name for section in SECTIONS for name in section.names)
"""All published runs."""


def kind_of(name: str) -> str:
    """The kind of run that is published under a name."""
    return next(section.kind for section in SECTIONS if name in section.names)


def read_all(folder: Path = RESULTS) -> dict[str, Run]:
    """Every published run by name. Raises ValueError that names an absent or wrong file."""
    return {name: read_run(folder / f"{name}.json") for name in NAMES}
