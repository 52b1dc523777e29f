"""Liveness, readiness and metrics through a replica's life."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from api_harness import MakePredictor
from prometheus_client.parser import text_string_to_metric_families

from serve.api import create_app
from serve.replica.predictor import Predictor

Unstarted = Callable[[Predictor], httpx.AsyncClient]


async def readiness(client: httpx.AsyncClient) -> list[int]:
    answers = [await client.get(path) for path in ("/v2/health/live", "/v2/health/ready", "/ping")]
    assert answers[0].json() == {"live": True}
    assert answers[1].json() == {"ready": answers[1].status_code == 200}
    assert answers[2].content == b""
    return [answer.status_code for answer in answers]


async def test_ready_only_between_warm_up_and_drain(make_predictor: MakePredictor, unstarted: Unstarted) -> None:
    predictor = make_predictor()
    body = {"records": [{"amount": 1, "age": 2}]}
    async with unstarted(predictor) as client:
        assert await readiness(client) == [200, 503, 503]
        for early in (await client.post("/v1/models/fraud/predict", json=body), await client.get("/v1/models")):
            assert (early.status_code, early.json()["code"]) == (503, "not_ready")
            assert early.headers["retry-after"] == "1"
        await predictor.start()
        assert await readiness(client) == [200, 200, 200]
        await predictor.drain()
        assert await readiness(client) == [200, 503, 503]
        late = await client.post("/v1/models/fraud/predict", json=body)
        assert (late.status_code, late.json()["code"]) == (503, "draining")
        assert late.headers["retry-after"] == "1"
        await predictor.close()
        assert await readiness(client) == [200, 503, 503]


async def test_metrics_are_what_prometheus_reads(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert [sample.value for sample in families["tabpfn_ready"].samples] == [1]
    assert {sample.labels["model"] for sample in families["tabpfn_model_info"].samples} == {"fraud", "price"}


async def test_the_text_of_metrics_may_come_from_elsewhere(make_predictor: MakePredictor) -> None:
    async def render() -> bytes:
        return b"of_every_replica 1\n"

    app = create_app(make_predictor(), render_metrics=render)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/metrics")
    assert response.content == b"of_every_replica 1\n"
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
