"""Probes: which pass, which are void, and which end the measurement of a system."""

from __future__ import annotations

import json

import pytest
from scripted_server import Answer, Request, ScriptedServer, StartServer, documented_answer, fraud_model

from benchmarks.online.closed_loop import answers_per_s
from benchmarks.online.errors import Refused, Unsettled, WrongAnswers
from benchmarks.online.generator import Generator, Offer
from benchmarks.online.probe import Prober, ProbeSettings, judge
from benchmarks.online.tally import Tally
from benchmarks.online.target import make_ready
from benchmarks.online.wire import native_wire

RECORDS = [{"amount": float(amount)} for amount in (10, 90, 400)]
PATIENT = ProbeSettings(bound_ms=60_000, min_requests=30, min_s=0.3, max_s=0.6, warmup_s=0.1)
IDLE_MS = 60_000.0


async def prober_of(server: ScriptedServer, settings: ProbeSettings = PATIENT) -> Prober:
    ready = await make_ready(server.url, native_wire("fraud"), RECORDS, 1e-9)
    return Prober(Generator(), ready.target, settings, IDLE_MS)


def seen(late: int, scheduled: int, lag_ms: float = 0.1, **more: object) -> Tally:
    made = Tally(scheduled=scheduled, ok=scheduled, late=late, **more)  # type: ignore[arg-type]
    made.latencies_ms, made.lags_ms = [10.0] * scheduled, [lag_ms] * scheduled
    made.by_status["200"] = scheduled
    return made


OFFER = Offer(rate=100, duration_s=10)


@pytest.mark.parametrize(("late", "passed"), [(0, True), (2, True), (3, False)])
def test_a_thousand_requests_bear_two_late_ones(late: int, passed: bool) -> None:
    probe = judge(seen(late, 1000), OFFER, max_lag_ms=10)
    assert probe["passed"] is passed
    assert probe["allowed_late"] == 2
    assert not probe["void"]
    assert probe["goodput_per_s"] == (1000 - late) / 10
    json.dumps(probe, allow_nan=False)


def test_a_lagging_generator_and_a_broken_off_probe_are_told() -> None:
    lagging = judge(seen(0, 1000, lag_ms=50), OFFER, max_lag_ms=10)
    assert lagging["void"]
    assert "lagged" in lagging["void_reasons"][0]
    broken_off = judge(seen(0, 1000, stopped_early=True), OFFER, max_lag_ms=10)
    assert not broken_off["passed"]
    assert broken_off["confidence"] is broken_off["goodput_per_s"] is None
    assert judge(Tally(), OFFER, max_lag_ms=10)["void"]


def test_a_probe_is_as_long_as_its_requests_take_within_limits() -> None:
    settings = ProbeSettings(min_requests=1000, min_s=4, max_s=12)
    assert [settings.duration_s(rate) for rate in (10, 100, 1000)] == [12, 10, 4]
    first, second = settings.offer(50, 0, ends_early=True), settings.offer(50, 1, ends_early=False)
    assert first.allowed_late is not None
    assert second.allowed_late is None
    assert first.draw() != second.draw()


@pytest.mark.usefixtures("never_lags")
async def test_a_system_that_answers_passes(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    prober = await prober_of(server)
    assert await prober.passes(80)
    (probe,) = prober.probes
    assert probe["passed"]
    assert probe["late"] == 0
    assert probe["verified"]["compared"] == probe["scheduled"] > 0
    assert "cpu_ms_per_request" not in probe


async def test_cpu_time_is_divided_by_what_was_answered(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    prober = await prober_of(server)
    clock = iter([1.0, 3.0])
    prober.cpu_s = lambda: next(clock)
    probe = await prober.measure(80)
    warm_up_and_measured = len(PATIENT.offer(80, 0, ends_early=False).draw())
    assert probe["cpu_ms_per_request"] == pytest.approx(2000 / warm_up_and_measured, abs=1e-3)


async def test_a_void_pass_does_not_count_and_is_tried_again(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(fraud_model)
    prober = await prober_of(server)
    monkeypatch.setattr("benchmarks.online.summary.lag_reason", lambda *_: "it lagged")
    assert not await prober.passes(80)
    assert [probe["passed"] for probe in prober.probes] == [True, True]


async def test_wrong_answers_under_load_end_it(start_server: StartServer) -> None:
    asked = 0

    async def changes_its_mind(request: Request) -> Answer:
        nonlocal asked
        asked += request.method == "POST"
        answer = documented_answer(request.body)
        if asked > 3 + 3:  # three alone, three to settle
            answer["predictions"][0]["probabilities"][0] += 0.01
        return 200, answer

    server = await start_server(changes_its_mind)
    prober = await prober_of(server)
    with pytest.raises(WrongAnswers, match=r"differ from those given alone, by up to 0\.01"):
        await prober.passes(80)
    assert len(prober.probes) == 1


async def test_a_system_that_does_not_come_to_rest_ends_it(start_server: StartServer) -> None:
    broken = False

    async def breaks(request: Request) -> Answer:
        return (503, {}) if broken else await fraud_model(request)

    server = await start_server(breaks)
    prober = await prober_of(server, ProbeSettings(settle_s=0.05))
    broken = True
    with pytest.raises(Unsettled, match="503"):
        await prober.measure(10)


async def test_making_ready_asks_each_record_alone(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    ready = await make_ready(server.url, native_wire("fraud"), RECORDS, 1e-9)
    assert sorted(ready.target.alone) == [0, 1, 2]
    assert ready.distinct_answers == 3
    assert ready.idle_ms > 0
    assert server.num_requests == 3
    assert await answers_per_s(ready.target, 2, 0.1) > 0

    async def refuse(_: Request) -> Answer:
        return 422, {"code": "invalid_input"}

    with pytest.raises(Refused, match="invalid_input"):
        await make_ready((await start_server(refuse)).url, native_wire("fraud"), RECORDS, 1e-9)
