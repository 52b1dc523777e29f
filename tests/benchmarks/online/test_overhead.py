"""A server beside its engine: the numbers that the answers give, and the command with a server that it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted_server import Answer, Request, StartServer, fraud_model

from benchmarks.online.closed_loop import ask_repeatedly
from benchmarks.online.errors import Refused
from benchmarks.online.overhead import main
from benchmarks.online.saturation import Answered, idle_round, medians, read_answers, saturated_round
from benchmarks.online.target import make_ready
from benchmarks.online.wire import native_wire

RECORDS = [{"amount": float(amount)} for amount in (10, 90, 400)]


def crowd() -> Answered:
    """In two seconds ten batches of four rows, 100 ms each, and twenty of one, 20 ms each."""
    batch_rows = [4] * 40 + [1] * 20
    compute_ms = [100.0] * 40 + [20.0] * 20
    return Answered(2.0, [50.0] * 60, batch_rows, [7.0] * 60, compute_ms)


def test_answers_tell_the_batches_that_they_rode_in() -> None:
    answered = crowd()
    assert answered.rows_per_s == 30
    assert answered.num_batches == pytest.approx(30)
    assert answered.busy_share == pytest.approx((10 * 0.1 + 20 * 0.02) / 2)
    drawn = answered.draw_batches(1, 3_000)
    assert set(drawn) == {1, 4}
    assert drawn.count(4) / len(drawn) == pytest.approx(1 / 3, abs=0.03), "of batches, not of rows"


def test_a_second_at_saturation_is_divided() -> None:
    found = saturated_round(crowd(), engine_rows_per_s=60.0)
    assert found["share"] == 0.5
    assert found["mean_batch_rows"] == pytest.approx(2)
    assert found["slower_in_server"] == pytest.approx(0.2)
    assert found["between_batches"] == pytest.approx(0.3)
    assert found["share"] + found["slower_in_server"] + found["between_batches"] == pytest.approx(1)


def test_what_is_added_is_of_each_round_and_the_median_is_over_rounds() -> None:
    rounds = [idle_round(Answered(1.0, [9.0, 6.0, 7.0], [1] * 3, [], []), [5.0, 4.0, 40.0])]
    assert rounds[0] == {"server_ms": 7, "engine_ms": 5, "added_ms": 2}
    rounds += [{"server_ms": 20, "engine_ms": 10, "added_ms": 10}, {"server_ms": 6, "engine_ms": 5, "added_ms": 1}]
    assert medians(rounds) == {"server_ms": 7, "engine_ms": 5, "added_ms": 2}


@pytest.mark.parametrize(("status", "message"), [(200, "otherwise than alone"), (429, "answered 429")])
async def test_a_wrong_answer_or_none_ends_the_run(start_server: StartServer, status: int, message: str) -> None:
    async def later_otherwise(request: Request) -> Answer:
        if server.num_requests <= len(RECORDS):
            return await fraud_model(request)
        _, other = await fraud_model(Request(request.method, request.path, b'{"records": [{"amount": 7.0}]}'))
        return status, other

    server = await start_server(later_otherwise)
    target = (await make_ready(server.url, native_wire("fraud"), RECORDS, 1e-9)).target
    with pytest.raises(Refused, match=message):
        read_answers(target, await ask_repeatedly(target, 2, 0.1), 0.1)


def test_the_command_measures_the_server_beside_its_engine(tmp_path: Path) -> None:
    to_json = tmp_path / "overhead.json"
    short = "--systems tabpfn-serve-uvicorn --rounds 1 --idle-s 0.2 --duration 0.4 --warmup 0.1 --step-calls 5 --nice 0"
    assert main([*short.split(), "--connections", "8", "--json", str(to_json)]) == 0
    run = json.loads(to_json.read_text())
    assert run["kind"] == "online-overhead"
    found = run["systems"]["tabpfn-serve-uvicorn"]
    assert found["idle"]["server_ms"] > 0
    assert 1 <= found["saturation"]["mean_batch_rows"] <= 8
    assert found["saturation"]["cpu_ms_per_request"] > 0
    assert list(run["steps_ms"]) == ["parse", "encode", "compute", "serialise"]
    assert all(value > 0 for value in run["steps_ms"].values())
