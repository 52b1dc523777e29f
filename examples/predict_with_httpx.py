"""50 concurrent requests with httpx; the server joins their rows into batches. Start `tabpfn-serve up`, then run:

python examples/predict_with_httpx.py http://127.0.0.1:8080 [MODEL]
"""

import asyncio
import sys
from typing import Any

import httpx

NUM_REQUESTS = 50


async def predict(client: httpx.AsyncClient, model: str, record: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(f"/v1/models/{model}/predict", json={"records": [record]})
    response.raise_for_status()
    return response.json()


async def main(url: str, model: str = "fraud") -> None:
    limits = httpx.Limits(max_connections=NUM_REQUESTS)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        record = (await client.get(f"/v1/models/{model}")).json()["example"]
        answers = await asyncio.gather(*(predict(client, model, record) for _ in range(NUM_REQUESTS)))
    batch_rows = sorted({answer["batch_rows"] for answer in answers})
    slowest = max(answer["timing_ms"]["total"] for answer in answers)
    print(f"{len(answers)} answers; rows per batch: {batch_rows}; slowest: {slowest:.0f} ms in the server")


asyncio.run(main(*sys.argv[1:]))
