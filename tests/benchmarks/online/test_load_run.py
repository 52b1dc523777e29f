"""Whole runs of the load generator against a scripted server."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, Request, ScriptedServer, StartServer, documented_answer, fraud_model

from benchmarks.online.client import Client
from benchmarks.online.errors import Refused
from benchmarks.online.generator import Offer, send_share
from benchmarks.online.knee import MAX_RAISED, knee, rising_rates
from benchmarks.online.load import exit_status, main, make_parser, run_load
from benchmarks.online.open_loop import send_on_time
from benchmarks.online.summary import summarise_offer
from benchmarks.online.table import table
from benchmarks.online.tally import tally
from benchmarks.online.target import Target
from benchmarks.online.wire import native_wire

FAST = "--duration 0.5 --warmup 0.1 --rate 60 --verify-records 8 --num-records 16 --connections 4"


def options_for(server: ScriptedServer, *changes: str) -> argparse.Namespace:
    return make_parser().parse_args(["--url", server.url, *FAST.split(), *changes])


async def test_the_run_says_everything_that_it_was(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    run = await run_load(options_for(server, "--rate", "40", "80"))
    json.dumps(run, allow_nan=False)
    assert list(run) == [
        "kind", "started_at", "machine", "versions", "commit", "dirty", "config", "server", "ceiling", "results",
    ]  # fmt: skip
    assert run["kind"] == "online-load"
    assert {"cpu", "cores", "memory_bytes", "os", "gpus"} <= set(run["machine"])
    assert {"python", "torch", "tabpfn", "ray", "tabpfn-serve"} <= set(run["versions"])
    outputs = {"json", "plot", "from_json"}
    assert set(run["config"]) == set(vars(options_for(server))) - outputs
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
    run = await run_load(options_for(server, "--warmup", "0.5", "--verify-records", "3"))
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
    (result,) = (await run_load(options_for(server, "--no-verify")))["results"]
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
    exchanges = await send_on_time(client, due, [0] * 21, [native_wire("fraud").request("h", [{"amount": 1.0}])])
    await client.drain()
    await client.close()
    seen = tally(exchanges, scheduled=len(exchanges), bound_ms=100, alone={}, tolerance=0)
    result = summarise_offer(seen, Offer(rate=20, duration_s=1), max_lag_ms=10)
    assert result["void"]
    run = {"results": [{**result, "lagged": True}]}
    assert exit_status(run, allow_lag=False) == 1
    assert exit_status(run, allow_lag=True) == 0


async def test_a_server_that_went_away_is_a_result() -> None:
    with socket.socket() as taken:  # bound but not listening
        taken.bind(("127.0.0.1", 0))
        target = Target("127.0.0.1", taken.getsockname()[1], [b"GET / HTTP/1.1\r\n\r\n"], {}, 0)
        offer = Offer(rate=50, duration_s=0.2, warmup_s=0)
        seen = await send_share(target, offer)
    result = summarise_offer(seen, offer, max_lag_ms=10)
    assert seen.connections == seen.sent == seen.answered == 0
    assert sum(result["errors"].values()) == result["scheduled"] > 0
    assert result["void_reasons"] == ["nothing was sent"]


async def test_a_server_that_cannot_be_measured_is_said_before_any_load(start_server: StartServer) -> None:
    async def refuses_records(request: Request) -> Answer:
        return (422, {"code": "invalid_input"}) if request.method == "POST" else await fraud_model(request)

    server = await start_server(refuses_records)
    with pytest.raises(Refused, match=r"answered 422: .*invalid_input"):
        await run_load(options_for(server))
    with pytest.raises(Refused, match=r"no model 'other' \(404\): pass --model with one of fraud"):
        await run_load(options_for(server, "--model", "other"))
    assert server.num_requests == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("--url https://example.org", "http://HOST"),
        ("--url 127.0.0.1:8080", "http://HOST"),
        ("--url http://h:port", "http://HOST"),
        ("--rate", "--rate"),
        ("--rate 0", "--rate: 0 is not a number above 0"),
        ("--rate fast", "--rate: fast is not a number above 0"),
        ("--connections 0", "--connections: 0 is not a whole number of at least 1"),
        ("--rows 1.5", "--rows: 1.5 is not a whole number of at least 1"),
        ("--warmup -1", "--warmup: -1 is not a number of at least 0"),
        ("--knee-factor 1", "--knee-factor must be above 1"),
        ("--records absent.jsonl --url http://127.0.0.1:9", "no server answers at http://127.0.0.1:9"),
        ("--from-json absent.json", "there is no file absent.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(changes.split())
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.usefixtures("never_lags")
async def test_rates_rise_until_goodput_falls(start_server: StartServer) -> None:
    async def slow_when_crowded(request: Request) -> Answer:
        nonlocal asked
        asked += request.method == "POST"
        if asked > 60:
            return 429, {}
        return await fraud_model(request)

    asked = 0
    server = await start_server(slow_when_crowded)
    arguments = "--rate 40 --until-knee --knee-factor 2 --deadline-ms 60000 --timeout 60"
    run = await run_load(options_for(server, *arguments.split()))
    rates = [result["rate"] for result in run["results"]]
    assert rates[:2] == [40, 80]
    assert run["knee"]["highest_good_rate"] == 40
    assert "goodput fell" in run["knee"]["ended"] or "two rates in a row" in run["knee"]["ended"]
    json.dumps(run, allow_nan=False)


@pytest.mark.parametrize(("run", "status"), [({}, 1), ({"knee": {}}, 0)])
def test_lag_is_how_a_rise_may_end_and_else_a_fault(run: dict[str, Any], status: int) -> None:
    good = {"void": False, "lagged": False, "void_reasons": []}
    lagged = {"void": True, "lagged": True, "void_reasons": ["it lagged"]}
    wrong = {"void": True, "lagged": True, "void_reasons": ["it lagged", "a wrong answer"]}
    assert exit_status({**run, "results": [good, lagged]}, allow_lag=False) == status
    assert exit_status({**run, "results": [lagged, good]}, allow_lag=False) == 1
    assert exit_status({**run, "results": [good, wrong]}, allow_lag=True) == 1


def result_at(rate: float, goodput_per_s: float, **more: Any) -> dict[str, Any]:
    return {
        "rate": rate, "scheduled": round(10 * rate), "duration_s": 10.0, "goodput_per_s": goodput_per_s,
        "lagged": False, "void": False, **more,
    }  # fmt: skip


def rise(given: list[float], factor: float, result_of: Callable[[float], dict[str, Any]]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for rate in rising_rates(given, factor, results):
        results.append(result_of(rate))  # noqa: PERF401 - the next rate depends on the results so far
    return results


@pytest.mark.parametrize(
    ("goodput", "best"),
    [
        ({10: 10, 20: 20, 40: 40, 80: 30}, 40),  # it falls
        ({10: 10, 20: 20, 40: 30, 80: 31}, 20),  # it levels out
    ],
)
def test_the_rise_ends_past_the_knee(goodput: dict[float, float], best: float) -> None:
    results = rise([10, 20], 2, lambda rate: result_at(rate, goodput[rate]))
    assert [result["rate"] for result in results] == list(goodput)
    assert knee(results)["highest_good_rate"] == best


def test_the_rise_ends_where_the_generator_lags_and_after_enough_rates() -> None:
    results = rise([10], 2, lambda rate: result_at(rate, rate, lagged=rate > 20, void=rate > 20))
    assert [result["rate"] for result in results] == [10, 20, 40]
    assert knee(results) == {
        "highest_good_rate": 20,
        "ended": "at 40/s the generator lagged: this machine cannot offer more",
    }
    endless = rise([10], 1.1, lambda rate: result_at(rate, rate))
    assert len(endless) == 1 + MAX_RAISED
    assert "still rises" in knee(endless)["ended"]


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
    said = capsys.readouterr()
    assert "goodput/s" in said.out
    assert "1 of 1 rates: 50 requests/s: goodput" in said.err
    to_plot.unlink()
    assert main(["--from-json", str(to_json), "--plot", str(to_plot), "--allow-lag"]) == 0
    assert to_plot.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == said.out


async def test_the_generators_own_ceiling(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.online.ceiling._SECONDS", 0.2)
    server = await start_server(fraud_model)
    run = await run_load(options_for(server, "--ceiling", "--warmup", "0"))
    assert run["ceiling"]["requests_per_s"] > 0
    assert run["ceiling"]["floor"]["latency"]["n"] > 0
