"""The systems that are compared: how each is started, asked and stopped, and the settings that it was given."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.online.wire import Wire, native_wire
from benchmarks.peers.environments import pins, python_of
from benchmarks.peers.process import Process, free_port

COMPILED, TABPFN = "compiled", "tabpfn"
"""The engines: `compiled` is the engine of this project, `tabpfn` the classifier of the tabpfn package."""

TOLERANCES = {COMPILED: 1e-5, TABPFN: 0.03}
"""Largest difference of a probability from tabpfn's float32 answer. On a CPU that multiplies bfloat16, tabpfn chooses
this precision itself, and its answers then also depend on the other rows of their batch."""

_SERVERS = "benchmarks.peers.servers"


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        engine: `compiled` or `tabpfn`.
        command: what follows the interpreter, with `{port}` and `{threads}`.
        variables: added to the process's environment, with `{threads}`.
        environment: name of the peer's virtual environment; None for the project's own.
        settings: the settings that it was given, in words.
    """

    name: str
    engine: str
    command: tuple[str, ...]
    settings: str
    environment: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    wire: Wire = field(default_factory=Wire)
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def is_peer(self) -> bool:
        """Whether another server than tabpfn-serve answers."""
        return self.environment is not None

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability that is still the right answer."""
        return TOLERANCES[self.engine]

    @property
    def versions(self) -> dict[str, str]:
        """The versions that its own environment pins."""
        return {} if self.environment is None else pins(self.environment)

    def arguments(self, port: int, threads: int) -> list[str]:
        """The whole command, interpreter first."""
        python = sys.executable if self.environment is None else str(python_of(self.environment))
        return [python, *(part.format(port=port, threads=threads) for part in self.command)]

    def environment_variables(self, threads: int) -> dict[str, str]:
        """Variables that are added to the process's environment."""
        return {name: value.format(threads=threads) for name, value in self.variables.items()}

    def process(self, threads: int, log: Path) -> Process:
        """Its processes, to be started on a port that is free now."""
        port = free_port()
        return Process(
            self.name, self.arguments(port, threads), self.environment_variables(threads), port, log,
            stop_signal=self.stop_signal,
        )  # fmt: skip


def _tabpfn_serve(name: str, edge: str, engine: str) -> System:
    flags: tuple[str, ...] = ()
    if engine == TABPFN:  # in the precision that tabpfn chooses behind the peers too
        flags = ("--backend", "tabpfn", "--inference-precision", "auto", "--parity-tolerance", "0.03")
    return System(
        name,
        engine,
        ("-m", "serve", edge, "--port", "{port}", "--num-threads", "{threads}", *flags),
        f"`tabpfn-serve {edge}`, defaults",
        wire=native_wire("fraud"),
    )


def _peers(name: str, settings: str, module: str, environment: str, **more: object) -> Iterator[System]:
    """A peer's server, once with tabpfn's engine and once with the compiled engine."""
    flags = more.pop("flags", ())
    for engine in (TABPFN, COMPILED):
        command = ("-m", f"{_SERVERS}.{module}", "--port", "{port}", "--engine", engine, "--threads", "{threads}")
        yield System(
            _name(name, engine), engine, (*command, *flags), settings, environment=environment, **more  # type: ignore
        )  # fmt: skip


def _bentoml() -> Iterator[System]:
    """Started by the framework's own command, which takes none of our options: variables carry them."""
    server = ("-m", "bentoml", "serve", f"{_SERVERS}.bentoml_server:Fraud")
    place = ("--host", "127.0.0.1", "--port", "{port}", "--working-dir", str(ROOT))
    for engine in (TABPFN, COMPILED):
        yield System(
            _name("bentoml", engine),
            engine,
            (*server, *place),
            "batchable, max_batch_size 256, max_latency_ms 100 (the bound), workers 1, access log and metrics off",
            environment="bentoml",
            variables={
                "PEER_ENGINE": engine,
                "PEER_THREADS": "{threads}",
                "BENTOML_DO_NOT_TRACK": "True",
                "BENTOML_HOME": str(ROOT / ".venv" / "peers" / "bentoml" / "home"),
            },
        )


def _name(peer: str, engine: str) -> str:
    return peer if engine == TABPFN else f"{peer}-compiled-engine"


_FASTAPI = "`def` endpoint in the thread pool, a lock, no batching; uvicorn, 1 worker, no access log"
_UNCACHED = System(
    "fastapi-uncached",
    TABPFN,
    ("-m", f"{_SERVERS}.fastapi_server", "--port", "{port}", "--engine", "tabpfn-uncached", "--threads", "{threads}"),
    f"{_FASTAPI}; fit_mode fit_preprocessors, tabpfn's default: no KV cache",
    environment="fastapi",
)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        _tabpfn_serve("tabpfn-serve", "serve", COMPILED),
        _tabpfn_serve("tabpfn-serve-uvicorn", "up", COMPILED),
        _tabpfn_serve("tabpfn-serve-tabpfn-backend", "up", TABPFN),
        _UNCACHED,
        *_peers("fastapi-cached", f"{_FASTAPI}; fit_mode fit_with_cache", "fastapi_server", "fastapi"),
        *_peers(
            "ray-serve-defaults",
            "@serve.batch and deployment with their defaults (10 requests, 10 ms, 5 ongoing), Python proxy",
            "ray_server",
            "ray",
        ),
        *_peers(
            "ray-serve-tuned",
            "@serve.batch of 256 within 5 ms, model called in the replica's loop, 4096 ongoing, HAProxy, throughput "
            "flags, no access log",
            "ray_server",
            "ray",
            flags=("--tuned",),
        ),
        *_peers(
            "litserve",
            "max_batch_size 256, batch_timeout 2 ms, fast_queue, 1 worker, 1 API server",
            "litserve_server",
            "litserve",
            stop_signal=signal.SIGINT,  # at SIGTERM its main process ends and leaves the workers
        ),
        *_bentoml(),
        *_peers(
            "mosec",
            "max_batch_size 256, max_wait_time 1 ms (the least), 1 worker, JSON by msgspec, time-out 30 s",
            "mosec_server",
            "mosec",
        ),
    )
}
"""By name, in the order in which they are measured."""
