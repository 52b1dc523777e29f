"""Section of the `online-peers` run: the same model behind other servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.publish.markdown import NONE, Run, between, count, ms, options, paragraph, provenance, table

COMPILED_LOAD = "half_load_compiled_engine"
"""The rate at which latency and CPU are compared."""
SERVERS = {
    "tabpfn-serve": "**tabpfn-serve**, Ray",
    "tabpfn-serve-uvicorn": "**tabpfn-serve**, uvicorn",
    "tabpfn-serve-tabpfn-backend": "**tabpfn-serve**, uvicorn",
    "fastapi-uncached": "FastAPI and `predict_proba` without KV cache",
    "fastapi-cached": "FastAPI without batching",
    "ray-serve-defaults": "Ray Serve `@serve.batch`, defaults",
    "ray-serve-tuned": "Ray Serve `@serve.batch`, tuned",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "mosec": "mosec",
}
_COMPILED_SUFFIX = "-compiled-engine"


def name_of(system: str) -> str:
    """A system for a reader."""
    peer = system.removesuffix(_COMPILED_SUFFIX)
    name = SERVERS.get(peer, peer)
    return f"{name}, compiled engine" if system.endswith(_COMPILED_SUFFIX) else name


def section(run: Run, name: str) -> str:
    """A line for each server, the highest rate first; then the settings of each."""
    by_rate = sorted(run["systems"].items(), key=lambda item: (-_rate(item[1]), item[1]["idle_p50_ms"] or 0.0))
    head = ["server", "engine", "highest rate, 1/s", "lowest to highest round", "p50 / p99 at the common rate, ms"]
    head += ["CPU ms a request", "one request alone, ms"]
    rows = [
        [
            SERVERS.get(system.removesuffix(_COMPILED_SUFFIX), system),
            f"`{found['engine']}`",
            count(_rate(found)),
            between(found["max_rates"] or [0.0], count),
            _at_load(found),
            ms(found[f"cpu_ms_per_request_{COMPILED_LOAD}"]),
            ms(found["idle_p50_ms"]),
        ]
        for system, found in by_rate
    ]
    config, checked = run["config"], sum(found["answers_checked"] or 0 for found in run["systems"].values())
    bound = config["search_probe"]["bound_ms"]
    rates = [probe["rate"] for probe in run["results"] if probe["purpose"] == COMPILED_LOAD]
    note = paragraph(
        f"{len(rows)} systems, {config['rounds']} rounds, medians. The highest rate is the highest Poisson rate of "
        f"one-row requests with p99 within {bound:g} ms; 0 means that the system kept no rate. The common rate is half "
        f"of the best peer's highest rate ({between(rates, count)} requests per second). {count(checked)} answers were "
        "checked before the load, and those under load too."
    )
    return (
        f"{note}\n{table(head, rows)}\n"
        f"{provenance(run, name, command(run))}\n### Settings of each server\n\n{_settings(run)}"
    )


def _rate(found: Mapping[str, Any]) -> float:
    return float(found["max_rate_p99_100ms"] or 0.0)


def _at_load(found: Mapping[str, Any]) -> str:
    p50, p99 = found[f"p50_ms_{COMPILED_LOAD}"], found[f"p99_ms_{COMPILED_LOAD}"]
    return NONE if p99 is None else f"{ms(p50)} / {ms(p99)}"


def _settings(run: Run) -> str:
    """Each server once: it is set the same way for both engines. The JSON has all pinned versions."""
    rows = {}
    for system, found in run["systems"].items():
        if not system.endswith(_COMPILED_SUFFIX):
            version = next((f"{package} {number}" for package, number in found["versions"].items()), NONE)
            rows[SERVERS.get(system, system)] = [SERVERS.get(system, system), found["settings"], version]
    return table(["server", "settings", "version"], rows.values())


def command(run: Run) -> str:
    """The command that made the run."""
    return f"python -m benchmarks.peers {options(run['config'], 'rounds', 'budget_s', 'threads')}"
