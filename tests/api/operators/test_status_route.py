"""`GET /v1/status` over the real app."""

from __future__ import annotations

import httpx
from api_harness import FRAUD, RECORDS


async def test_it_names_state_models_queue_and_device(client: httpx.AsyncClient) -> None:
    assert (await client.post(FRAUD, json={"records": RECORDS})).status_code == 200
    response = await client.get("/v1/status")
    assert response.status_code == 200
    status = response.json()
    assert (status["state"], status["is_ready"]) == ("ready", True)
    assert [model["name"] for model in status["models"]] == ["fraud", "price"]
    assert set(status["models"][0]["batch_ms"]) >= {"1", "64"}
    assert status["queue"]["num_ongoing_requests"] == 0
    assert status["device"]["name"] == "cpu"


async def test_it_is_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "get" in document["paths"]["/v1/status"]
