"""One schedule, however many processes send it; late exchanges are counted while sending."""

from __future__ import annotations

import time
from typing import Any

from scripted_server import Answer, Request, ScriptedServer, StartServer, fraud_model

from benchmarks.online.client import Exchange
from benchmarks.online.generator import Generator, Offer, send_share
from benchmarks.online.tally import LateWatch, merge
from benchmarks.online.target import Target
from benchmarks.online.wire import native_wire

AMOUNTS = (10.0, 200.0, 3000.0)


def target_of(server: ScriptedServer, **changes: Any) -> Target:
    requests = [native_wire("fraud").request("h", [{"amount": amount}]) for amount in AMOUNTS]
    return Target(
        **{"host": "127.0.0.1", "port": server.port, "requests": requests, "alone": {}, "tolerance": 0, **changes}
    )


PATIENT = Offer(rate=60, duration_s=0.5, warmup_s=0.2, bound_ms=60_000, connections=4, timeout_s=60)


async def test_processes_share_one_schedule(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    start = time.monotonic() + 0.05
    shares = [await send_share(target_of(server), PATIENT, number, 3, start) for number in range(3)]
    whole = merge(shares)
    due = PATIENT.draw()
    assert whole.scheduled == sum(at >= 0.2 for at in due) == whole.ok == whole.offered
    assert server.num_requests == len(due) == whole.answered_with_warmup
    assert max(share.scheduled for share in shares) - min(share.scheduled for share in shares) <= 1 + 1
    assert len(whole.latencies_ms) == len(whole.lags_ms) == whole.ok
    assert whole.late == 0


async def test_processes_of_their_own_do_the_same(start_server: StartServer) -> None:
    server = await start_server(fraud_model)
    async with Generator(2) as generator:
        seen = await generator.offer(target_of(server), PATIENT)
    assert seen.ok == seen.scheduled == sum(at >= 0.2 for at in PATIENT.draw())
    assert seen.late == seen.mismatches == 0
    assert not seen.stopped_early


async def test_answers_are_compared_and_refusals_are_late(start_server: StartServer) -> None:
    async def refuses_the_largest(request: Request) -> Answer:
        return (429, {}) if b"3000" in request.body else await fraud_model(request)

    server = await start_server(refuses_the_largest)
    seen = await send_share(target_of(server, alone={0: [0.1, 0.9]}), PATIENT, 0, 1, time.monotonic() + 0.05)
    assert seen.late == seen.by_status["429"] == len(seen.refusals_ms) > 0
    assert seen.compared == seen.mismatches > 0
    assert seen.ok + seen.by_status["429"] == seen.scheduled


async def test_an_offer_that_cannot_pass_is_broken_off(start_server: StartServer) -> None:
    async def refuse(_: Request) -> Answer:
        return 429, {}

    server = await start_server(refuse)
    hopeless = Offer(rate=200, duration_s=30, warmup_s=0, bound_ms=60_000, allowed_late=3, connections=4)
    seen = await send_share(target_of(server), hopeless, 0, 1, time.monotonic() + 0.05)
    assert seen.stopped_early
    assert 3 < seen.late < 1000 < seen.scheduled


def exchange(due: float, *, finished: float | None = None, status: int = 200) -> Exchange:
    made = Exchange(due=due, request=b"")
    if finished is not None:
        made.finished, made.status = finished, status
    return made


def test_the_watch_counts_each_late_exchange_once() -> None:
    watch = LateWatch(bound_ms=100, allowed=1, measured_from=1.0)
    assert not watch(exchange(0.5, finished=5.0))  # warm-up
    assert not watch(exchange(1.0, finished=1.05))
    assert not watch(exchange(1.05, finished=1.06, status=429))
    assert watch.late == 1
    assert not watch(exchange(1.1))  # not yet answered
    assert not watch(exchange(1.15, finished=1.16))
    assert watch.late == 1
    assert watch(exchange(1.3, finished=1.31))  # by now the exchange of 1.1 is late, also if it is answered later
    assert watch.late == 2
