"""Whole runs of the load generator against a scripted server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, Request, ScriptedServer, StartServer, documented_answer, fraud_model

from benchmarks.online.client import Client
from benchmarks.online.load import exit_status, main, run_load
from benchmarks.online.offer import offer_rate, send_on_time
from benchmarks.online.options import HELP, LoadOptions
from benchmarks.online.summary import summarise_rate
from benchmarks.online.table import table
from benchmarks.online.verify import Refused
from benchmarks.online.wire import predict_request


def options_for(server: ScriptedServer, **changes: Any) -> LoadOptions:
    fast: dict[str, Any] = {"duration": 0.5, "warmup": 0.1, "rate": (60.0,), "verify_records": 8, "num_records": 16}
    return LoadOptions(**{"url": server.url, "connections": 4, **fast, **changes})


async def test_the_run_says_everything_that_it_was(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    run = await run_load(options_for(server, rate=(40.0, 80.0)))
    json.dumps(run, allow_nan=False)
    assert list(run) == [
        "kind", "started_at", "machine", "versions", "commit", "dirty", "config", "server", "ceiling", "results",
    ]  # fmt: skip
    assert run["kind"] == "online-load"
    assert {"cpu", "cores", "memory_bytes", "os", "gpus"} <= set(run["machine"])
    assert {"python", "torch", "tabpfn", "ray", "tabpfn-serve"} <= set(run["versions"])
    assert set(run["config"]) == set(HELP)
    assert run["server"]["version"] == "1"
    assert "example" not in run["server"]
    assert [result["rate"] for result in run["results"]] == [40, 80]
    for result in run["results"]:
        assert result["scheduled"] == result["ok"] > 0
        assert result["by_status"] == {"200": result["ok"]}
        assert result["errors"] == {}
        assert result["latency"]["n"] == result["ok"]
        assert not result["latency"]["p99_reliable"]
        assert result["verified"]["mismatches"] == 0
        assert result["verified"]["compared"] > 0
        assert result["verified"]["distinct_answers"] == 8


async def test_warm_up_requests_are_sent_and_not_counted(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    run = await run_load(options_for(server, warmup=0.5, verify_records=3))
    (result,) = run["results"]
    num_warm_up = server.num_requests - result["sent"] - 1 - 3  # GET of the model, three records alone
    assert num_warm_up > 5
    assert 5 < result["sent"] < 80


async def test_refusals_are_part_of_the_result(start_server: StartServer) -> None:
    asked = 0

    async def refuses_every_second(request: Request) -> Answer:
        nonlocal asked
        asked += request.method == "POST"
        if request.method == "POST" and asked > 1 and asked % 2 == 0:
            return 429, {"code": "overloaded"}
        return await fraud_model(request)

    server = await start_server(refuses_every_second)
    (result,) = (await run_load(options_for(server, verify=False)))["results"]
    assert result["by_status"]["429"] + result["by_status"]["200"] == result["scheduled"]
    assert result["by_status"]["429"] > 0
    assert result["latency"]["n"] == result["ok"]
    assert result["verified"] is None


async def test_answers_that_change_under_load_are_void_and_no_lag_pardon_helps(start_server: StartServer) -> None:
    alone_done = 0

    async def wrong_under_load(request: Request) -> Answer:
        nonlocal alone_done
        status, answer = await fraud_model(request)
        if request.method == "POST":
            alone_done += 1
            if alone_done > 8:
                answer["predictions"][0]["probabilities"][0] += 1e-4
        return status, answer

    server = await start_server(wrong_under_load)
    run = await run_load(options_for(server))
    (result,) = run["results"]
    assert result["void"]
    assert result["verified"]["mismatches"] == result["verified"]["compared"] > 0
    assert exit_status(run, allow_lag=True) == 1
    assert "differ by more than 1e-06" in table(run)


async def test_a_generator_that_is_held_up_is_void(start_server: StartServer) -> None:
    """The server blocks the event loop that the generator also lives on: its later sends are late."""

    async def block_everything(request: Request) -> Answer:
        if first:
            first.clear()
            time.sleep(0.25)  # noqa: ASYNC251 - blocking is the point
        return 200, documented_answer(request.body)

    first = [True]
    server = await start_server(block_everything)
    client = Client("127.0.0.1", server.port, connections=2)
    await client.open()
    due = [0.0, *(0.04 + 0.001 * step for step in range(20))]
    exchanges = await send_on_time(client, due, [0] * 21, [predict_request("h", "fraud", [{"amount": 1.0}])])
    await client.drain()
    await client.close()
    result = summarise_rate(exchanges, rate=20, duration_s=1, deadline_ms=100, max_lag_ms=10)
    assert result["lagged"]
    assert result["void"]
    run = {"results": [result]}
    assert exit_status(run, allow_lag=False) == 1
    assert exit_status(run, allow_lag=True) == 0


async def test_a_server_that_went_away_is_a_result() -> None:
    with socket.socket() as taken:  # bound but not listening
        taken.bind(("127.0.0.1", 0))
        options = LoadOptions(url=f"http://127.0.0.1:{taken.getsockname()[1]}", duration=0.2, warmup=0.0)
        exchanges, num_connections = await offer_rate(options, 50.0, [b"GET / HTTP/1.1\r\n\r\n"])
    result = summarise_rate(exchanges, rate=50, duration_s=0.2, deadline_ms=100, max_lag_ms=10)
    assert num_connections == result["sent"] == result["answered"] == 0
    assert sum(result["errors"].values()) == result["scheduled"] > 0
    assert result["void_reasons"] == ["nothing was sent"]


async def test_a_server_that_cannot_be_measured_is_said_before_any_load(start_server: StartServer) -> None:
    async def refuses_records(request: Request) -> Answer:
        return (422, {"code": "invalid_input"}) if request.method == "POST" else await fraud_model(request)

    server = await start_server(refuses_records)
    with pytest.raises(Refused, match=r"answered 422: .*invalid_input"):
        await run_load(options_for(server))
    with pytest.raises(Refused, match="GET /v1/models/other: 404"):
        await run_load(options_for(server, model="other"))
    assert server.num_requests == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "https://example.org"}, "http://HOST"),
        ({"url": "127.0.0.1:8080"}, "http://HOST"),
        ({"rate": ()}, "rate"),
        ({"rate": (0.0,)}, "rate"),
        ({"connections": 0}, "connections"),
    ],
)
def test_senseless_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadOptions(**changes)


async def test_the_command_writes_json_and_plot(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await start_server(fraud_model)
    to_json, to_plot = tmp_path / "out" / "run.json", tmp_path / "out" / "run.png"
    arguments = f"--url {server.url} --rate 50 --duration 0.4 --warmup 0 --connections 2 --allow-lag --no-verify"
    status = await asyncio.to_thread(
        main, [*arguments.split(), "--json", str(to_json), "--plot", str(to_plot)]
    )  # a thread has its own loop, uvloop's
    assert status == 0
    run = json.loads(to_json.read_text())
    assert run["config"]["rate"] == [50]
    assert run["config"]["verify"] is False
    assert to_plot.read_bytes().startswith(b"\x89PNG")
    assert "goodput/s" in capsys.readouterr().out


def test_the_command_says_what_is_wrong_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--url", "ftp://nowhere"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


async def test_the_generators_own_ceiling(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.online.ceiling._SECONDS", 0.2)
    server = await start_server(fraud_model)
    run = await run_load(options_for(server, ceiling=True, warmup=0.0))
    assert run["ceiling"]["requests_per_s"] > 0
    assert run["ceiling"]["floor"]["latency"]["n"] > 0
