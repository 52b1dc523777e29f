"""The replica's life as the server sees it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from api_harness import Gate, MakePredictor, Serving

from serve.api import create_app
from serve.core import ServerState
from serve.core.errors import StartupError
from serve.engine.fake import FakeEngine
from serve.settings import MetricsSettings

BODY = {"records": [{"amount": 1, "age": 2}]}


async def test_the_lifespan_starts_and_closes(make_predictor: MakePredictor) -> None:
    predictor = make_predictor()
    app = create_app(predictor)
    async with app.router.lifespan_context(app):
        assert predictor.state is ServerState.READY
    assert predictor.state is ServerState.CLOSED


async def test_a_predictor_that_runs_already_is_not_started_again(make_predictor: MakePredictor) -> None:
    predictor = make_predictor()
    await predictor.start()
    app = create_app(predictor)
    async with app.router.lifespan_context(app):
        assert predictor.state is ServerState.READY


async def test_an_error_of_the_start_is_raised_and_leaves_nothing_running(
    make_predictor: MakePredictor, gate: Gate
) -> None:
    gate.error = RuntimeError("no memory")
    predictor = make_predictor(FakeEngine(gate=gate))
    app = create_app(predictor)
    with pytest.raises(StartupError, match="no memory"):
        async with app.router.lifespan_context(app):
            pytest.fail("served nevertheless")
    assert predictor.state is ServerState.CLOSED


async def test_the_end_waits_for_what_was_admitted(make_predictor: MakePredictor, serving: Serving, gate: Gate) -> None:
    predictor = make_predictor(FakeEngine(gate=gate))
    async with serving(predictor) as client:
        gate.shut()
        admitted = asyncio.create_task(client.post("/v1/models/fraud/predict", json=BODY))
        await asyncio.to_thread(gate.wait_for_batch)
        drain = asyncio.create_task(predictor.drain())
        await asyncio.sleep(0)  # it begins
        refused = await client.post("/v1/models/fraud/predict", json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert not drain.done()
        gate.open()
        assert (await admitted).status_code == 200
        await drain


async def test_metrics_are_written_to_the_log_where_that_was_asked_for(
    make_predictor: MakePredictor, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.touch()
    metrics = MetricsSettings(emf_namespace="TabPFN", emf_service="cards", emf_interval_s=3_600, emf_path=log)
    app = create_app(make_predictor(metrics=metrics))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.post("/v1/models/fraud/predict", json=BODY)).status_code == 200
    replica, model = map(json.loads, log.read_text().splitlines())
    assert (replica["Service"], replica["Requests"], model["Model"]) == ("cards", 1, "fraud")
