"""The life of a replica: the order of its stop, whichever moment it comes at, and every listener it has."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable

import httpx
import pytest
from ports import free_port
from predictor_harness import RECORD, OneModel, make, predict

from serve.api import create_app
from serve.core import Batch, ModelDefinition, ServerState
from serve.core.errors import DeviceLost, Draining, StartupError
from serve.edges.uvicorn_server import EmbeddedServer
from serve.engine.fake import FakeEngine
from serve.replica.lifecycle import ReplicaLifecycle, StoppedBeforeReady, lifecycle_of
from serve.replica.predictor import Predictor


class RecordedListener:
    """Writes the calls of the lifecycle into a list, with the state of the replica at each."""

    def __init__(self, name: str, predictor: Predictor, calls: list[str]) -> None:
        self.name, self._predictor, self._calls = name, predictor, calls
        self.is_open = False
        self.is_empty = asyncio.Event()
        self.is_empty.set()

    def _note(self, call: str) -> None:
        self._calls.append(f"{self.name} {call} {self._predictor.state}")

    async def open(self) -> None:
        self._note("open")
        self.is_open = True

    async def close(self) -> None:
        self._note("close")
        self.is_open = False

    async def wait_empty(self) -> None:
        await self.is_empty.wait()
        self._note("empty")

    async def abort(self) -> None:
        self._note("abort")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - of a loop that turns
            await asyncio.sleep(0)


async def test_two_listeners_open_when_ready_and_close_before_the_drain() -> None:
    predictor, calls = make(), []
    listeners = [RecordedListener(name, predictor, calls) for name in ("a", "b")]
    lifecycle = ReplicaLifecycle(predictor, listeners)
    assert not lifecycle.is_open
    await lifecycle.start()
    assert lifecycle.is_open
    await lifecycle.stop()
    assert calls == [
        "a open ready", "b open ready", "a close ready", "b close ready", "a empty ready", "b empty ready",
        "a empty closed", "b empty closed", "a abort closed", "b abort closed",
    ]  # fmt: skip


async def test_two_ports_answer_and_both_are_closed() -> None:
    predictor, ports = make(), (free_port(), free_port())
    servers = [EmbeddedServer.at(predictor, "127.0.0.1", port) for port in ports]
    lifecycle = ReplicaLifecycle(predictor, servers)
    await lifecycle.start()
    async with httpx.AsyncClient() as client:
        for port in ports:
            assert (await client.get(f"http://127.0.0.1:{port}/v2/health/ready")).status_code == 200
    await lifecycle.stop()
    async with httpx.AsyncClient() as client:
        for port in ports:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://127.0.0.1:{port}/v2/health/live")


async def test_a_lame_duck_fails_readiness_and_answers_predictions() -> None:
    predictor, calls = make(), []
    listener = RecordedListener("a", predictor, calls)
    lifecycle = ReplicaLifecycle(predictor, [listener], lame_duck_s=3600)
    await lifecycle.start()
    stopping = asyncio.create_task(lifecycle.stop())
    await until(lambda: predictor.state is ServerState.LAME_DUCK)
    transport = httpx.ASGITransport(create_app(predictor))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/health/live")).status_code == 200
        answer = await client.post("/v1/models/fraud/predict", json={"records": [RECORD]})
        assert answer.status_code == 200
    assert listener.is_open
    lifecycle.hurry()
    await stopping
    assert calls[1] == "a close lame_duck"
    assert predictor.state is ServerState.CLOSED


async def test_a_lame_duck_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", recorded)
    predictor = make()
    lifecycle = ReplicaLifecycle(predictor, lame_duck_s=0.0625)
    await lifecycle.start()
    await lifecycle.stop()
    assert slept.count(0.0625) == 1
    assert predictor.state is ServerState.CLOSED


async def test_a_second_stop_waits_for_the_first() -> None:
    predictor, calls = make(), []
    listener = RecordedListener("a", predictor, calls)
    listener.is_empty.clear()
    lifecycle = ReplicaLifecycle(predictor, [listener])
    await lifecycle.start()
    stops = [asyncio.create_task(lifecycle.stop()) for _ in range(2)]
    await until(lambda: "a close ready" in calls)
    assert not any(stop.done() for stop in stops)
    listener.is_empty.set()
    await asyncio.gather(*stops)
    await lifecycle.stop()
    assert [call for call in calls if "close " in call] == ["a close ready"]


class Held:
    """A gate that holds the batches of a FakeEngine once the warm-up is over."""

    def __init__(self) -> None:
        self.is_shut, self.entered, self.release = False, threading.Event(), threading.Event()

    def __call__(self, _: Batch) -> None:
        if self.is_shut:
            self.entered.set()
            assert self.release.wait(20)


async def _with_a_held_request(*listeners: str) -> tuple[Held, ReplicaLifecycle, Awaitable[object], list[str]]:
    gate, calls = Held(), []
    predictor = make(FakeEngine(gate=gate))
    lifecycle = ReplicaLifecycle(predictor, [RecordedListener(name, predictor, calls) for name in listeners])
    await lifecycle.start()
    gate.is_shut = True
    asked = asyncio.create_task(predict(predictor, [RECORD]))
    assert await asyncio.to_thread(gate.entered.wait, 20)
    return gate, lifecycle, asked, calls


async def test_the_stop_waits_for_an_admitted_request() -> None:
    gate, lifecycle, asked, calls = await _with_a_held_request("a")
    stopping = asyncio.create_task(lifecycle.stop())
    await until(lambda: "a close ready" in calls)
    assert not stopping.done()
    gate.release.set()
    await stopping
    assert (await asked) is not None


async def test_hurry_gives_an_admitted_request_its_outcome_without_waiting_for_its_batch() -> None:
    gate, lifecycle, asked, calls = await _with_a_held_request("a")
    stopping = asyncio.create_task(lifecycle.stop())
    await until(lambda: "a close ready" in calls)
    lifecycle.hurry()
    with pytest.raises(Draining):
        await asked
    assert not gate.release.is_set(), "answered before the batch was done"
    gate.release.set()
    await stopping


class SlowStore(OneModel):
    """A store whose load lasts until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = threading.Event(), threading.Event()

    def load(self, name: str) -> ModelDefinition:
        self.entered.set()
        assert self.release.wait(20)
        return super().load(name)


async def test_a_stop_before_ready_opens_no_listener() -> None:
    store, calls = SlowStore(), []
    predictor = make(store=store)
    lifecycle = ReplicaLifecycle(predictor, [RecordedListener("a", predictor, calls)], lame_duck_s=3600)
    starting = asyncio.create_task(lifecycle.start())
    assert await asyncio.to_thread(store.entered.wait, 20)
    stopping = asyncio.create_task(lifecycle.stop())
    store.release.set()
    await stopping
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert predictor.state is ServerState.CLOSED
    assert not [call for call in calls if "open" in call]


async def test_a_signal_before_ready_is_said_at_once() -> None:
    store = SlowStore()
    lifecycle = ReplicaLifecycle(make(store=store))
    running = asyncio.create_task(lifecycle.run(lambda: None))
    assert await asyncio.to_thread(store.entered.wait, 20)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StoppedBeforeReady):
        await running
    store.release.set()
    await lifecycle.stop()


async def test_run_serves_until_the_signal_and_gives_the_handlers_back() -> None:
    predictor, ready = make(), threading.Event()
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    running = asyncio.create_task(ReplicaLifecycle(predictor).run(ready.set))
    assert await asyncio.to_thread(ready.wait, 20)
    assert predictor.is_ready
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert predictor.state is ServerState.CLOSED
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_second_sigint_hurries() -> None:
    predictor, ready = make(), threading.Event()
    running = asyncio.create_task(ReplicaLifecycle(predictor, lame_duck_s=3600).run(ready.set))
    assert await asyncio.to_thread(ready.wait, 20)
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: predictor.state is ServerState.LAME_DUCK)
    os.kill(os.getpid(), signal.SIGINT)
    await running
    assert predictor.state is ServerState.CLOSED


async def test_an_error_of_the_announcement_stops_the_replica() -> None:
    predictor = make()

    def fail() -> None:
        raise StartupError("nobody answers")

    with pytest.raises(StartupError, match="nobody answers"):
        await ReplicaLifecycle(predictor).run(fail)
    assert predictor.state is ServerState.CLOSED


async def test_a_failed_start_closes_what_was_opened() -> None:
    predictor, calls = make(), []

    class Refused(RecordedListener):
        async def open(self) -> None:
            raise StartupError("the port is taken")

    listeners = [RecordedListener("a", predictor, calls), Refused("b", predictor, calls)]
    with pytest.raises(StartupError, match="the port is taken"):
        await ReplicaLifecycle(predictor, listeners).start()
    assert calls[:2] == ["a open ready", "a close ready"]
    assert predictor.state is ServerState.CLOSED


@pytest.mark.parametrize("lost", ["engine", "listener"])
async def test_a_replica_that_cannot_serve_any_more_stops_by_itself(lost: str) -> None:
    engine, calls, ready = FakeEngine(), [], threading.Event()
    predictor = make(engine)
    listener = RecordedListener("a", predictor, calls)
    running = asyncio.create_task(ReplicaLifecycle(predictor, [listener], lame_duck_s=3600).run(ready.set))
    assert await asyncio.to_thread(ready.wait, 20)
    if lost == "engine":
        engine.lost = True
    else:
        listener.is_open = False
    with pytest.raises(DeviceLost, match="engine is gone" if lost == "engine" else "does not listen any more"):
        await running
    assert predictor.state is ServerState.CLOSED


async def test_a_file_of_metrics_that_cannot_be_written_is_a_failed_start(tmp_path: os.PathLike[str]) -> None:
    predictor = make()
    path = os.path.join(tmp_path, "absent", "metrics")
    metrics = predictor.settings.metrics.model_copy(update={"emf_namespace": "Test", "emf_path": path})
    predictor.settings = predictor.settings.model_copy(update={"metrics": metrics})
    with pytest.raises(StartupError, match=r"metrics.emf_path: cannot write to .*absent/metrics: No such file"):
        lifecycle_of(predictor)
