"""Bulk callers beside interactive ones, and overload, against a scripted server; the summaries of both."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, Request, ScriptedServer, StartServer, fraud_model

from benchmarks.online.bulk import BulkLoad
from benchmarks.online.client import Exchange
from benchmarks.online.errors import Refused
from benchmarks.online.mixed import main
from benchmarks.online.mixed_summary import summarise_mixed, summarise_overload
from benchmarks.online.target import make_ready
from benchmarks.online.wire import native_wire

RECORDS = [{"amount": float(amount)} for amount in (10, 90, 400)]
SHORT = "--nice 0 --duration 0.3 --warmup 0.1 --capacity 60 --bulk-rows 7 --bound-ms 60000 --overload-rounds 1"


async def load_on(server: ScriptedServer, rows: int = 7) -> BulkLoad:
    ready = await make_ready(server.url, native_wire("fraud"), RECORDS, 1e-9)
    return BulkLoad(ready, native_wire("fraud"), RECORDS, rows, connections=2, timeout_s=60)


def exchange(due: float, finished: float, status: int = 200) -> Exchange:
    made = Exchange(due=due, request=b"")
    made.finished, made.status = finished, status
    return made


async def test_rows_count_by_the_share_of_their_time_in_the_window(start_server: StartServer) -> None:
    load = await load_on(await start_server(fraud_model), rows=10)
    load.done = [exchange(0, 2), exchange(2, 4), exchange(4, 8), exchange(4, 6, status=429), exchange(8, 9)]
    # of the first half, the second whole, of the third a quarter
    assert load.rows_per_s(1, 5) == pytest.approx((5 + 10 + 2.5) / 4)
    assert load.rows_per_s(20, 30) == 0


async def test_bulk_answers_are_held_against_those_of_their_rows_alone(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    load = await load_on(server)
    await load.check()
    stop = asyncio.Event()
    running = asyncio.create_task(load.run(stop))
    while len(load.done) < 6:  # noqa: ASYNC110 - the callers' own answers are what is waited for
        await asyncio.sleep(0)
    stop.set()
    await running
    assert load.num_wrong() == 0
    load.done[0].body = load.done[0].body.replace(b"0.", b"0.1", 1)
    load.done[1].body = b"no JSON"
    assert load.num_wrong() == 2


async def test_a_system_that_does_not_take_bulk_is_refused(start_server: StartServer) -> None:
    async def one_row_only(request: Request) -> Answer:
        many = request.method == "POST" and len(json.loads(request.body)["records"]) > 1
        return (413, {"code": "too_large"}) if many else await fraud_model(request)

    with pytest.raises(Refused, match="7 rows was answered 413"):
        await (await load_on(await start_server(one_row_only))).check()


def test_ratios_are_of_rounds_and_the_room_is_what_interactive_leaves() -> None:
    found = {
        "alone_p99": [10.0, 20.0, 10.0],
        "beside_p99": [15.0, 60.0, 12.0],
        "bulk_alone": [1000.0, 500.0, 1000.0],
        "bulk_beside": [540.0, 300.0, 480.0],
    }
    summary = summarise_mixed(found, share=0.4)
    assert summary["interactive_p99_ratio"] == 1.5
    assert summary["bulk_share_of_room"] == 0.9
    assert (summary["bulk_rows_per_s_alone"], summary["rounds"]) == (1000, 3)


def overloaded(goodput: float, refusal_p99_ms: float | None = 3.0) -> dict[str, Any]:
    return {
        "rate": 200.0, "goodput_per_s": goodput, "by_status": {"200": 95, "429": 90, "504": 5},
        "errors": {"timeout": 2}, "refusal": {"p99_ms": refusal_p99_ms}, "verified": {"mismatches": 0}, "void": False,
    }  # fmt: skip


def test_overload_tells_refused_expired_and_unanswered_apart() -> None:
    summary = summarise_overload([[60.0, 80.0, 100.0]], [overloaded(95.0)])
    assert (summary["goodput_of_peak"], summary["peak_goodput_per_s"]) == (0.95, 100)
    assert (summary["refused"], summary["expired"], summary["unanswered"]) == (90, 5, 2)
    assert summary["refusal_p99_ms"] == 3.0
    nothing = summarise_overload([[0.0, 0.0, 0.0]], [overloaded(95.0, None)])
    assert (nothing["goodput_of_peak"], nothing["refusal_p99_ms"]) == (None, None)


def test_the_peak_is_one_rate_for_all_rounds_and_each_overload_is_held_against_its_own_round() -> None:
    below = [[60.0, 90.0, 50.0], [60.0, 80.0, 100.0], [60.0, 40.0, 70.0]]
    summary = summarise_overload(below, [overloaded(81.0), overloaded(80.0, 9.0), overloaded(20.0)])
    assert summary["peak_goodput_per_s"] == 80, "medians are 60, 80 and 70"
    assert summary["rounds_of_peak"] == [0.9, 1.0, 0.5]
    assert (summary["goodput_of_peak"], summary["goodput_per_s"], summary["refusal_p99_ms"]) == (0.9, 80, 3.0)
    assert (summary["refused"], summary["unanswered"]) == (270, 6)


async def test_the_command_measures_a_running_server(start_server: StartServer, tmp_path: Path) -> None:
    posted: set[str] = set()

    async def refuses_some_with_a_deadline(request: Request) -> Answer:
        posted.update(name for name in ("x-priority: bulk", "x-priority: interactive") if name in request.head)
        if "x-request-timeout-ms: 60000" in request.head and server.num_requests % 3 == 0:
            return 429, {}
        return await fraud_model(request)

    server = await start_server(refuses_some_with_a_deadline)
    to_json = tmp_path / "mixed.json"
    arguments = f"--url {server.url} --system tabpfn-serve {SHORT} --rounds 2 --json {to_json}"
    assert await asyncio.to_thread(main, arguments.split()) == 0
    run = json.loads(to_json.read_text())
    assert (run["kind"], run["system"]) == ("online-mixed", "tabpfn-serve")
    assert run["mixed"]["rounds"] == 2
    assert run["mixed"]["bulk_wrong_answers"] == 0
    assert run["mixed"]["interactive_rate"] == 24
    assert all(math.isfinite(value) for value in run["mixed"].values())
    assert run["overload"]["refused"] > 0
    assert run["overload"]["unanswered"] == run["overload"]["mismatches"] == 0
    assert {result["purpose"] for result in run["results"]} == {
        "interactive alone", "interactive beside bulk", "below capacity", "overload",
    }  # fmt: skip
    assert posted == {"x-priority: bulk", "x-priority: interactive"}
