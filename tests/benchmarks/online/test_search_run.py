"""The search command, whole, against a scripted server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from scripted_server import Answer, Request, StartServer, fraud_model

from benchmarks.online.search import main

pytestmark = pytest.mark.usefixtures("never_lags")

SHORT = "--nice 0 --min-requests 20 --min-s 0.2 --max-s 0.4 --warmup-s 0 --rounds 2 --connections 4 --num-records 8"
PATIENT = "--bound-ms 60000"


async def test_the_command_finds_confirms_writes_and_draws(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await start_server(fraud_model)
    to_json, to_plot = tmp_path / "search.json", tmp_path / "search.png"
    arguments = f"--url {server.url} {SHORT} {PATIENT} --start 40 --high 100 --arrivals bursty"
    assert await asyncio.to_thread(main, [*arguments.split(), "--json", str(to_json), "--plot", str(to_plot)]) == 0
    run = json.loads(to_json.read_text())
    assert run["kind"] == "online-search"
    assert run["found"]["max_rate"] == 100  # nothing is late, so the highest rate that is tried stands
    assert run["found"]["requests_needed"] == 459
    assert run["found"]["distinct_answers"] == 8
    (confirmed,) = run["found"]["confirmation"]
    assert confirmed["confirmed"]
    assert confirmed["scheduled"] == sum(probe["scheduled"] for probe in run["results"][-2:])
    assert {"step", "resolution", "low", "high", "bound_ms", "seed", "arrivals"} <= set(run["config"])
    assert {"cpu", "usable_cores"} <= set(run["machine"])
    assert all(probe["verified"]["mismatches"] == 0 for probe in run["results"])
    assert to_plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "highest rate with p99 <= 60000 ms: 100/s" in printed.out
    assert "passed" in printed.err


async def test_a_system_that_refuses_under_load_has_no_rate(start_server: StartServer, tmp_path: Path) -> None:
    async def refuses_fast_callers(request: Request) -> Answer:
        """A probe opens forty connections at once; a request that is asked alone needs one."""
        if request.method == "POST" and server.num_connections > 10 and b'"amount": 120.0' not in request.body:
            return 429, {}
        return await fraud_model(request)

    server = await start_server(refuses_fast_callers)
    to_json = tmp_path / "search.json"
    arguments = f"--url {server.url} {SHORT} {PATIENT} --start 30 --low 20 --connections 40"
    assert await asyncio.to_thread(main, [*arguments.split(), "--json", str(to_json)]) == 0
    run = json.loads(to_json.read_text())
    assert run["found"]["max_rate"] == 0.0
    assert run["found"]["confirmation"] == []
    assert all(probe["by_status"].get("429") for probe in run["results"])


async def test_what_is_wrong_is_said_in_one_line(start_server: StartServer, capsys: pytest.CaptureFixture[str]) -> None:
    server = await start_server(fraud_model)
    for arguments, message in (
        ("--model other", "has no model 'other' (404): pass --model with one of fraud"),
        ("--step 1", "--step above 1"),
        ("--records absent.csv", "--records absent.csv: there is no such file"),
        ("--arrivals even", "choose from 'poisson', 'bursty'"),
    ):
        with pytest.raises(SystemExit) as stop:
            await asyncio.to_thread(main, ["--url", server.url, *arguments.split()])
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
