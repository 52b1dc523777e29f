"""Fronts as processes: answers, counts, early refusals, cancellations, and what becomes of all when one is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from front_process_harness import BODY, PREDICT, Connection, replica_with_fronts
from predictor_harness import make

from serve.core.errors import StartupError
from serve.edges.fronts import listener
from serve.edges.fronts.listener import Fronts
from serve.edges.sockets import bind
from serve.replica.lifecycle import ReplicaLifecycle

FRONTS = Path(listener.__file__).parent


def code_of(body: bytes) -> str:
    return str(json.loads(body)["code"])


def body_of(*amounts: float) -> bytes:
    return json.dumps({"records": [{"amount": amount} for amount in amounts]}).encode()


async def test_each_front_answers_and_one_scrape_counts_all() -> None:
    async with replica_with_fronts(2) as replica:
        by_front = await replica.connections_to_all(at_least=2)
        connections = [connection for each in by_front.values() for connection in each]
        num_asked = len(connections)
        answers = await asyncio.gather(
            *(c.ask(body_of(float(number)), f"x-request-id: r-{number}") for number, c in enumerate(connections))
        )
        for number, (status, headers, body) in enumerate(answers):
            assert (status, headers["x-request-id"], json.loads(body)["request_id"]) == (200, *[f"r-{number}"] * 2)
        alone = [(await connections[0].ask(body_of(float(number))))[2] for number in range(len(connections))]
        for one, (_, _, other) in zip(alone, answers, strict=True):
            assert json.loads(one)["predictions"] == json.loads(other)["predictions"]
        num_asked += 2 * len(connections)
        refused = [await c.ask(b"no JSON") for c in connections]
        assert {(status, code_of(body)) for status, _, body in refused} == {(400, "invalid_json")}
        await replica.lifecycle.stop()
        assert replica.counts() == {"ok": num_asked, "invalid_json": len(connections)}
        text = replica.predictor.telemetry.prometheus.render().decode()
        assert f'tabpfn_request_seconds_count{{model="fraud"}} {float(num_asked)}' in text


async def test_ids_that_fronts_make_are_never_the_same() -> None:
    async with replica_with_fronts(2) as replica:
        by_front = await replica.connections_to_all()
        ids = [(await c.ask())[1]["x-request-id"] for each in by_front.values() for c in each for _ in range(3)]
        assert len(set(ids)) == len(ids)


async def test_a_front_says_of_overload_what_the_core_says() -> None:
    async with replica_with_fronts(2, max_ongoing_requests=1) as replica:
        by_front = await replica.connections_to_all()
        connections = [each[0] for each in by_front.values()]
        first = await replica.connect()
        replica.gate.shut()
        first.send()
        await replica.until(lambda: replica.predictor.snapshot().queue.num_ongoing_requests == 1)
        # Until the board shows the request the core refuses; then the fronts do, without a word to the core.
        refusals = [await c.ask(BODY, "x-request-id: r") for c in connections for _ in range(200)]
        assert {(status, code_of(body), body) for status, _, body in refusals} == {(429, "overloaded", refusals[0][2])}
        assert {int(headers["retry-after"]) >= 1 for _, headers, _ in refusals} == {True}
        admitted = replica.counts().get("ok", 0)
        replica.gate.may_pass.set()
        assert (await first.answer())[0] == 200
        assert [(await c.ask())[0] for c in connections] == [200, 200], "the answer came behind the newer state"
        await replica.lifecycle.stop()
        assert replica.counts()["overloaded"] >= len(refusals)
        assert replica.counts()["ok"] >= admitted + 2
        text = replica.predictor.telemetry.prometheus.render().decode()
        refused = float(text.split('tabpfn_refused_requests_total{model="fraud",reason="requests"} ')[1].split()[0])
        assert refused == replica.counts()["overloaded"], "counted once, by the front or by the core"


async def test_a_front_refuses_before_the_body_has_come() -> None:
    async with replica_with_fronts(1, max_ongoing_requests=1) as replica:
        caller, first = await replica.connect(), await replica.connect()
        replica.gate.shut()
        first.send()
        await replica.until(lambda: replica.predictor.snapshot().queue.num_ongoing_requests == 1)
        status = 0
        while status != 429:  # until the board shows it
            caller.send(b"", f"x: {status}", path="/v1/models/fraud/predict")
            status, _, body = await caller.answer()
        received = replica.fronts._links[0].num_submitted
        for _ in range(20):
            caller.send(BODY)
            assert (await caller.answer())[0] == 429
        assert replica.fronts._links[0].num_submitted == received, "the core was not asked"
        assert code_of(body) == "overloaded"


async def test_deadlines_and_priorities_cross() -> None:
    async with replica_with_fronts(2) as replica:
        replica.gate.shut()
        holder = await replica.connect()
        holder.send(body_of(0.0))
        await asyncio.to_thread(replica.gate.entered.acquire)
        late = await replica.connect()
        status, _, body = await late.ask(body_of(1.0), "x-request-timeout-ms: 60")
        assert (status, code_of(body)) in [(504, "deadline_exceeded"), (429, "overloaded")]
        callers = [await replica.connect() for _ in range(2)]
        callers[0].send(body_of(*[7.0] * 6), "x-priority: bulk")
        await replica.until(lambda: replica.predictor.snapshot().queue.num_queued_rows["bulk"] == 6)
        callers[1].send(body_of(8.0))
        await replica.until(lambda: replica.predictor.snapshot().queue.num_queued_rows["interactive"] == 1)
        replica.gate.may_pass.set()
        assert [(await c.answer())[0] for c in (holder, *callers)] == [200, 200, 200]
        assert replica.gate.batches[1][0] == 8.0, "the interactive row is first"


async def test_a_caller_that_leaves_withdraws_its_rows() -> None:
    async with replica_with_fronts(2) as replica:
        replica.gate.shut()
        holder, leaver = await replica.connect(), await replica.connect()
        holder.send(body_of(0.0))
        await asyncio.to_thread(replica.gate.entered.acquire)
        leaver.send(body_of(5.0))
        await replica.until(lambda: replica.predictor.snapshot().queue.num_queued_requests == 1)
        await leaver.close()
        await replica.until(lambda: replica.predictor.snapshot().queue.num_queued_requests == 0)
        replica.gate.may_pass.set()
        assert (await holder.answer())[0] == 200
        assert replica.gate.batches == [[0.0]]
        await replica.lifecycle.stop()
        assert replica.counts() == {"ok": 1, "client_disconnected": 1}


async def test_large_requests_cross_in_parts_while_small_ones_pass() -> None:
    async with replica_with_fronts(1, max_request_rows=200_000) as replica:
        large, small = await replica.connect(), await replica.connect()
        amounts = [float(number % 1000) for number in range(60_000)]  # 480 kB of numbers: two parts
        large.send(body_of(*amounts))
        while not large.reader._buffer:  # type: ignore[attr-defined]
            assert (await small.ask())[0] == 200
        status, _, body = await large.answer()
        predictions = json.loads(body)["predictions"]
        assert (status, len(predictions)) == (200, len(amounts))
        for number in (0, 1, 32_767, 32_768, 59_999):
            alone = json.loads((await small.ask(body_of(amounts[number])))[2])["predictions"][0]
            assert predictions[number] == alone, number
        too_many = body_of(*[1.0] * 200_001)
        status, _, body = await large.ask(too_many)
        assert (status, code_of(body)) == (413, "too_large")


async def test_what_is_no_prediction_is_the_cores_answer() -> None:
    async with replica_with_fronts(2) as replica:
        for connections in (await replica.connections_to_all()).values():
            caller = connections[0]
            for path, status in [
                ("/v1/models", 200), ("/v1/models/fraud", 200), ("/metrics", 200), ("/v2/health/ready", 200),
                ("/docs", 200), ("/nowhere", 404),
            ]:  # fmt: skip
                caller.send(b"", "x-request-id: mine", method="GET", path=path)
                found, headers, body = await caller.answer()
                assert (found, headers["x-request-id"]) == (status, "mine"), path
                assert body
            caller.send(b"", method="GET", path="/v1/status")
            state = json.loads((await caller.answer())[2])
            assert (state["state"], state["models"][0]["name"]) == ("ready", "fraud")
            caller.send(b"", method="PUT", path=PREDICT)
            found, headers, body = await caller.answer()
            assert (found, headers["allow"], code_of(body)) == (405, "POST", "method_not_allowed")
            caller.send(b"", "x-request-id: " + "x" * 200, method="GET", path="/v1/models")
            found, _, body = await caller.answer()
            assert (found, code_of(body)) == (400, "invalid_header")
        assert [len(link._admitted) for link in replica.fronts._links.values()] == [0, 0]


async def test_the_same_number_of_connections_is_shared_by_the_fronts() -> None:
    async with replica_with_fronts(2) as replica:
        [share] = {json.loads(replica.fronts._start.settings)["api"]["max_connections"]}  # type: ignore[union-attr]
        assert share == replica.predictor.settings.api.max_connections / 2
        by_front = await replica.connections_to_all()
        num_open = sum(map(len, by_front.values()))
        await replica.until(lambda: replica.fronts.num_connections == num_open)


async def ask_until_told(connection: Connection, is_over: asyncio.Event) -> tuple[int, int]:
    """(answers, failures) of a caller that asks again as soon as it is answered, and ends where its connection does."""
    num_answered = 0
    while not is_over.is_set():
        try:
            assert (await connection.ask())[0] == 200
        except (asyncio.IncompleteReadError, ConnectionError):
            return num_answered, 1
        num_answered += 1
    return num_answered, 0


async def test_a_front_that_is_killed_under_load_loses_its_own_connections_and_comes_back() -> None:
    async with replica_with_fronts(3) as replica:
        by_front = await replica.connections_to_all(at_least=2)
        is_over = asyncio.Event()
        asking = {
            pid: [asyncio.create_task(ask_until_told(c, is_over)) for c in connections]
            for pid, connections in by_front.items()
        }
        victim, *others = replica.fronts.pids
        before = replica.counts()["ok"]
        await replica.until(lambda: replica.counts()["ok"] > before + 100)
        os.kill(victim, signal.SIGKILL)
        lost = await asyncio.gather(*asking[victim])
        assert [failures for _, failures in lost] == [1] * len(lost)
        await replica.until_replaced(victim)
        assert replica.fronts.pids[1:] == others
        assert replica.fronts.is_open
        by_front = await replica.connections_to_all()
        assert set(by_front) == set(replica.fronts.pids), "the new one has connections too"
        is_over.set()
        kept = await asyncio.gather(*(task for pid in others for task in asking[pid]))
        assert [failures for _, failures in kept] == [0] * len(kept)
        assert replica.predictor.snapshot().queue.num_ongoing_requests == 0, "nothing of the victim's is left behind"


async def test_rows_of_a_front_that_is_killed_are_not_computed() -> None:
    async with replica_with_fronts(1) as replica:
        replica.gate.shut()
        holder, waiting = await replica.connect(), await replica.connect()
        holder.send(body_of(0.0))
        await asyncio.to_thread(replica.gate.entered.acquire)
        waiting.send(body_of(5.0))
        await replica.until(lambda: replica.predictor.snapshot().queue.num_queued_requests == 1)
        [victim] = replica.fronts.pids
        os.kill(victim, signal.SIGKILL)
        await replica.until(lambda: replica.predictor.snapshot().queue.num_ongoing_requests == 0)
        replica.gate.may_pass.set()
        await replica.until_replaced(victim)
        assert (await (await replica.connect()).ask(body_of(1.0)))[0] == 200
        assert [5.0] not in replica.gate.batches


async def test_a_stop_answers_what_is_admitted_and_leaves_no_process() -> None:
    async with replica_with_fronts(2) as replica:
        by_front = await replica.connections_to_all(at_least=2)
        pids = replica.fronts.pids
        replica.gate.shut()
        busy = [connections[0] for connections in by_front.values()]
        idle = [connection for connections in by_front.values() for connection in connections[1:]]
        for connection in busy:
            connection.send()
        await replica.until(lambda: replica.predictor.snapshot().queue.num_ongoing_requests == len(busy))
        stopping = asyncio.create_task(replica.lifecycle.stop())
        for connection in idle:
            assert await connection.reader.read() == b"", "an idle connection is closed"
        with pytest.raises(ConnectionRefusedError):
            await replica.connect()
        replica.gate.may_pass.set()
        for connection in busy:
            status, headers, _ = await connection.answer()
            assert (status, headers.get("connection")) == (200, "close")
        await stopping
        assert not any(map(psutil.pid_exists, pids))


async def test_a_front_ignores_the_signals_of_the_terminal() -> None:
    async with replica_with_fronts(1) as replica:
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(replica.fronts.pids[0], signum)
        connection = await replica.connect()
        assert [(await connection.ask())[0] for _ in range(3)] == [200] * 3


async def test_a_front_that_cannot_start_fails_the_start(capfd: pytest.CaptureFixture[str]) -> None:
    predictor = make()
    sock = bind("127.0.0.1", 0)
    fronts = Fronts(predictor, lambda: sock, 2, program=("-c", "raise SystemExit('it is broken')"))
    lifecycle = ReplicaLifecycle(predictor, [fronts])
    with pytest.raises(StartupError, match="a front process ended before it listened"):
        await lifecycle.start()
    assert not fronts.is_open
    assert "it is broken" in capfd.readouterr().err


async def test_fronts_that_do_not_start_any_more_end_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_FIRST_PAUSE_S", 0.0)
    async with replica_with_fronts(1) as replica:
        replica.fronts._program = ("-c", "raise SystemExit('it is broken')")
        os.kill(replica.fronts.pids[0], signal.SIGKILL)
        await replica.until(lambda: not replica.fronts.is_open)
        await replica.until(lambda: replica.lifecycle.fault is not None)


async def test_a_front_that_sends_nonsense_is_replaced() -> None:
    async with replica_with_fronts(1) as replica:
        pid = replica.fronts.pids[0]
        channel = replica.fronts._links[0]._channel
        assert channel is not None
        channel.data_received(b"GET / HTTP/1.1\r\n\r\n")
        await replica.until_replaced(pid)
        assert (await (await replica.connect()).ask())[0] == 200


async def test_a_second_server_does_not_share_the_port() -> None:
    async with replica_with_fronts(1) as replica:
        with pytest.raises(StartupError, match="Address already in use"):
            bind("127.0.0.1", replica.port)


CORE_THAT_IS_KILLED = """
import asyncio, sys
from front_process_harness import replica_with_fronts
async def main():
    async with replica_with_fronts(2) as replica:
        print(*replica.fronts.pids, flush=True)
        await asyncio.Future()
asyncio.run(main())
"""


def test_a_core_that_is_killed_takes_its_fronts_down() -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    core = subprocess.Popen([sys.executable, "-c", CORE_THAT_IS_KILLED], stdout=subprocess.PIPE, env=environment)
    assert core.stdout is not None
    fronts = [psutil.Process(int(pid)) for pid in core.stdout.readline().split()]
    assert len(fronts) == 2
    core.kill()
    core.wait()
    core.stdout.close()
    _, alive = psutil.wait_procs(fronts, timeout=60)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_front_imports_no_engine_and_no_ray() -> None:
    code = (
        "import sys; import serve.edges.fronts.front; "
        "print(*{'torch', 'tabpfn', 'ray', 'pandas', 'sklearn', 'boto3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""


async def test_the_board_is_read_by_the_clock_of_the_core() -> None:
    """A deadline is a time of the machine's clock, so that it means the same in each process."""
    async with replica_with_fronts(1) as replica:
        before = time.monotonic()
        replica.gate.shut()
        caller = await replica.connect()
        caller.send(BODY, "x-request-timeout-ms: 30000")
        await replica.until(lambda: replica.predictor.snapshot().queue.num_ongoing_requests == 1)
        [admitted] = replica.fronts._links[0]._admitted.values()
        assert before + 30 <= admitted.deadline <= time.monotonic() + 30
        replica.gate.may_pass.set()
        assert (await caller.answer())[0] == 200
