"""A real Predictor over FakeEngine, behind the real app (pieces: `api_harness.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from api_harness import Gate, MakePredictor, Serving, TwoModels, client_of
from fronts_harness import client_over_sockets

from serve.api import create_app
from serve.core import Engine
from serve.engine.fake import FakeEngine
from serve.replica.predictor import Predictor
from serve.settings import ApiSettings, BatchingSettings, MetricsSettings, ServerSettings
from serve.telemetry.telemetry import Telemetry


@pytest.fixture
def make_predictor() -> MakePredictor:
    def make(
        engine: Engine | None = None,
        *,
        max_body_bytes: int = 20_000,
        metrics: MetricsSettings | None = None,
        **batching: float,
    ) -> Predictor:
        settings = ServerSettings(
            batching=BatchingSettings.model_validate({"max_batch_rows": 64, "max_request_rows": 256, **batching}),
            api=ApiSettings(max_body_bytes=max_body_bytes),
            metrics=metrics or MetricsSettings(),
        )
        return Predictor(
            TwoModels(),
            engine or FakeEngine(),
            settings,
            Telemetry(publishes_to_cloudwatch=settings.metrics.emf_namespace is not None),
        )

    return make


@pytest.fixture
def unstarted() -> Callable[[Predictor], httpx.AsyncClient]:
    """A client of an app whose lifespan has not begun."""
    return client_of


@pytest.fixture(params=["asgi", "socket", "two-fronts"])
def serving(request: pytest.FixtureRequest) -> Serving:
    """In process; over a socket, where small predictions take the fast path; and over two fronts."""
    if request.param != "asgi":
        return lambda predictor: client_over_sockets(predictor, {"socket": None, "two-fronts": 2}[request.param])

    @asynccontextmanager
    async def serve(predictor: Predictor) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(predictor)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            yield client

    return serve


@pytest.fixture
async def client(make_predictor: MakePredictor, serving: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(make_predictor()) as client:
        yield client


@pytest.fixture
def gate() -> Gate:
    return Gate()
