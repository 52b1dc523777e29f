"""A whole run of the peers' benchmark with stub systems, and the definitions of the real systems."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import ROOT, envelope, write_json
from benchmarks.online.bisection import SearchSettings
from benchmarks.online.probe import ProbeSettings
from benchmarks.peers import environments
from benchmarks.peers.__main__ import table
from benchmarks.peers.plot import draw_peers
from benchmarks.peers.rounds import Plan, run_rounds, summarise_systems
from benchmarks.peers.systems import SYSTEMS, System
from benchmarks.report import plot

RECORDS = [{"amount": float(amount)} for amount in range(1, 9)]
EXPECTED = [[1 - 1 / (2 + amount), 1 / (2 + amount)] for amount in range(1, 9)]
PROBE = ProbeSettings(bound_ms=20_000, min_requests=15, min_s=0.2, max_s=0.4, warmup_s=0.1, connections=4)
SEARCH = SearchSettings(step=1.5, resolution=0.4, low=5, high=60)
PLAN = Plan(2, 600.0, 1, 1, 0, PROBE, PROBE, SEARCH, SEARCH)


def stub_system(name: str, engine: str, told: str = "", *, is_peer: bool = True) -> System:
    stub = str(Path(__file__).parent / "stub_peer.py")
    command = (stub, "--port", "{port}", "--engine", told or engine)
    return System(name, engine, command, "as it comes", environment="fastapi" if is_peer else None)


@pytest.mark.usefixtures("never_lags")
async def test_a_run_of_stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.systems.python_of", lambda _: Path(sys.executable))
    systems = [
        stub_system("tabpfn-serve", "compiled", is_peer=False),
        stub_system("stub", "tabpfn"),
        stub_system("stub-compiled-engine", "compiled"),
        stub_system("broken", "tabpfn", told="broken"),
        stub_system("liar", "tabpfn", told="wrong"),
    ]
    contenders, rates = await run_rounds(PLAN, systems, RECORDS, EXPECTED, tmp_path)
    assert rates == {"half_load": 30, "half_load_compiled_engine": 30}
    assert all(contender.process.members() == [] for contender in contenders)
    found = summarise_systems(contenders)
    assert list(found) == [system.name for system in systems]
    for name in ("tabpfn-serve", "stub", "stub-compiled-engine"):
        row = found[name]
        assert row["max_rate_p99_100ms"] == 60  # the highest that is tried: no stub is late within 20 s
        assert row["max_rates"] == [60, 60]
        assert all(0 < confidence < 0.99 for confidence in row["confidences"])  # of so few requests
        assert 0 < row["p50_ms_half_load"] <= row["p99_ms_half_load"]
        assert row["cpu_ms_per_request"] >= 0
        assert row["answers_checked"] == row["distinct_answers"] == 8
        assert row["max_abs_diff_expected"] < 1e-12
        assert row["failure"] is None
    assert found["stub"]["p50_ms_half_load_compiled_engine"] is None  # of interest for our engine only
    assert found["stub-compiled-engine"]["p50_ms_half_load_compiled_engine"] > 0
    assert "it is broken" in found["broken"]["failure"]
    assert found["liar"]["failure"].startswith("WrongAnswers: alone")
    assert found["liar"]["max_rate_p99_100ms"] is None

    probes = [probe for contender in contenders for probe in contender.probes]
    order = [(probe["round"], probe["system"]) for probe in sorted(probes, key=lambda probe: probe["round"])]
    assert {number for number, _ in order} == {1, 2}
    run = envelope("online-peers", dataclasses.asdict(PLAN), probes, rates=rates, systems=found)
    write_json(run, tmp_path / "peers.json")
    plot(json.loads((tmp_path / "peers.json").read_text()), tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    for load in rates:  # where no peer sustains a rate with tabpfn's engine, the other load is drawn
        latency = draw_peers({**run, "rates": {load: 30}}).axes[1]
        assert sum(bar.get_width() > 0 for bar in latency.patches) >= 2
        assert latency.get_title().endswith("\n30 requests per second")
    both = [{"system": "stub", "purpose": "half_load", "rate": rate, "void": True} for rate in (12.4, 30.0)]
    older = draw_peers({**run, "rates": {"half_load": 30}, "results": both}).axes[1]
    assert older.get_title().endswith("\n12 to 30 requests per second")
    printed = table(found)
    assert "liar FAILED: WrongAnswers" in printed
    assert len(printed.splitlines()) == 1 + len(systems) + 2 + 2


@pytest.mark.usefixtures("never_lags")
async def test_a_slow_system_is_not_searched_and_the_budget_ends_the_rounds(tmp_path: Path) -> None:
    slow = dataclasses.replace(PROBE, bound_ms=1e-6)
    plan = dataclasses.replace(PLAN, rounds=50, budget_s=0.0, search_probe=slow)
    system = stub_system("tabpfn-serve", "compiled", is_peer=False)
    (contender,), rates = await run_rounds(plan, [system], RECORDS, EXPECTED, tmp_path)
    row = summarise_systems([contender])["tabpfn-serve"]
    assert row["note"] == "one request alone takes longer than the bound"
    assert row["max_rates"] == [0.0, 0.0]
    assert row["capacity_per_s"] > 0
    assert row["p50_ms_half_load"] is None
    assert rates == {}


def test_every_peer_is_there_with_both_engines() -> None:
    names = set(SYSTEMS)
    assert {"tabpfn-serve", "tabpfn-serve-uvicorn", "fastapi-uncached"} <= names
    for peer in ("fastapi-cached", "ray-serve-defaults", "ray-serve-tuned", "litserve", "bentoml", "mosec"):
        assert SYSTEMS[peer].engine == "tabpfn"
        assert SYSTEMS[f"{peer}-compiled-engine"].engine == "compiled"
        assert SYSTEMS[peer].settings == SYSTEMS[f"{peer}-compiled-engine"].settings
    assert SYSTEMS["fastapi-uncached"].engine == "tabpfn"


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_a_system_is_started_on_the_loopback_with_its_port_and_threads(system: System) -> None:
    arguments = system.arguments(18_080, 3)
    assert "18080" in arguments
    assert "3" in [*arguments, *system.environment_variables(3).values()]
    assert not any("{" in argument for argument in arguments)
    assert system.settings
    assert system.is_peer == bool(system.versions)
    module = next((part for part in arguments if part.startswith("benchmarks.")), None)
    if module is not None:
        assert (ROOT / (module.partition(":")[0].replace(".", "/") + ".py")).exists()


@pytest.mark.parametrize("name", environments.NAMES)
def test_requirements_are_pinned(name: str) -> None:
    assert environments.pins(name)
    lines = (environments.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"(#.*|[\w.\[\]-]+==[\w.]+)", line) for line in lines), lines


@pytest.mark.slow
def test_an_environment_sees_the_projects_packages_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pins of `fastapi.txt` are the project's own, so pip has nothing to fetch."""
    python = environments.install("fastapi", tmp_path)
    assert python.exists()
    runs: list[Any] = []
    monkeypatch.setattr("benchmarks.peers.environments.subprocess.run", lambda *_, **__: runs.append(1))
    assert environments.install("fastapi", tmp_path) == python
    assert not runs
