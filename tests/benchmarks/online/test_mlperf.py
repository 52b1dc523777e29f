"""The real LoadGen against a scripted server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from scripted_server import Answer, Request, StartServer, documented_answer, fraud_model

from benchmarks.online.evidence import requests_needed
from benchmarks.online.mlperf import main

SHORT = "--rate 400 --duration 0.2 --max-duration 30 --bound-ms 20000 --timeout 20 --num-records 8 --connections 8"


async def test_loadgen_finds_a_server_without_faults_valid(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(fraud_model)
    arguments = f"--url {server.url} {SHORT} --min-queries 470 --logs {tmp_path} --json {tmp_path / 'run.json'}"
    assert await asyncio.to_thread(main, arguments.split()) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["kind"] == "online-mlperf"
    (result,) = run["results"]
    assert result["valid"]
    assert (result["validity"], result["early_stopping_met"], result["bound_met"]) == ("VALID", True, True)
    assert result["queries"] == result["by_outcome"]["200"] >= 470
    assert result["late"] == result["mismatches"] == 0
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= 20_000
    assert result["scheduled_per_s"] > 0
    assert (tmp_path / "400" / "mlperf_log_summary.txt").exists()


async def test_its_statistic_and_ours_agree(start_server: StartServer, tmp_path: Path) -> None:
    """With fewer queries than none late needs, it calls the same run invalid."""
    server = await start_server(fraud_model)
    to_json = tmp_path / "run.json"
    arguments = f"--url {server.url} {SHORT} --min-queries 100 --json {to_json}"
    assert await asyncio.to_thread(main, arguments.split()) == 1
    (result,) = json.loads(to_json.read_text())["results"]
    assert 100 <= result["queries"] < requests_needed(0)
    assert (result["validity"], result["early_stopping_met"], result["late"]) == ("INVALID", False, 0)


@pytest.mark.parametrize("fault", ["refusal", "wrong answer"])
async def test_what_loadgen_cannot_see_makes_a_run_invalid(
    start_server: StartServer, tmp_path: Path, fault: str
) -> None:
    asked = 0

    async def faulty(request: Request) -> Answer:
        nonlocal asked
        asked += request.method == "POST"
        if asked != 100:
            return await fraud_model(request)
        if fault == "refusal":
            return 429, {}
        answer = documented_answer(request.body)
        answer["predictions"][0]["probabilities"][0] += 1e-3
        return 200, answer

    server = await start_server(faulty)
    to_json = tmp_path / "run.json"
    arguments = f"--url {server.url} {SHORT} --min-queries 470 --json {to_json}"
    assert await asyncio.to_thread(main, arguments.split()) == 1
    (result,) = json.loads(to_json.read_text())["results"]
    assert result["validity"] == "VALID"
    assert not result["valid"]
    assert result["by_outcome"].get("429", 0) + result["mismatches"] == 1
